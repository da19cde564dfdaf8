import pytest
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from bookserve.clients.inputs import compounds

# From PubChem.
FORMULAS = """
acetaminophen C8H9NO2, acetic acid C2H4O2, acetone C3H6O, adrenaline C9H13NO3, aniline C6H7N, ascorbic acid C6H8O6,
aspirin C9H8O4, atrazine C8H14ClN5, benzene C6H6, bisphenol a C15H16O2, caffeine C8H10N4O2, camphor C10H16O,
capsaicin C18H27NO3, chloroform CHCl3, cholesterol C27H46O, citric acid C6H8O7, curcumin C21H20O6, ddt C14H9Cl5,
diazepam C16H13ClN2O, diclofenac C14H11Cl2NO2, dopamine C8H11NO2, estradiol C18H24O2, ethanol C2H6O,
formaldehyde CH2O, genistein C15H10O5, glucose C6H12O6, glycerol C3H8O3, glycine C2H5NO2, glyphosate C3H8NO5P,
histamine C5H9N3, ibuprofen C13H18O2, lidocaine C14H22N2O, melatonin C13H16N2O2, menthol C10H20O, metformin C4H11N5,
methanol CH4O, naphthalene C10H8, naproxen C14H14O3, nicotine C10H14N2, paracetamol C8H9NO2, phenol C6H6O,
progesterone C21H30O2, quercetin C15H10O7, resveratrol C14H12O3, serotonin C10H12N2O, styrene C8H8,
tamoxifen C26H29NO, tcdd C12H4Cl4O2, testosterone C19H28O2, theobromine C7H8N4O2, thymol C10H14O, toluene C7H8,
triclosan C12H7Cl3O2, urea CH4N2O, vanillin C8H8O3, warfarin C19H16O4
"""


def test_each_name_is_that_of_its_molecule() -> None:
    known = dict(entry.strip().rsplit(" ", 1) for entry in FORMULAS.strip().split(","))
    found = {name: CalcMolFormula(Chem.MolFromSmiles(smiles)) for name, smiles in compounds.SMILES.items()}
    assert found == known


@pytest.mark.parametrize("text", ["Bisphenol A", " bisphenol  a", "BISPHENOL A"])
def test_a_name_may_be_written_as_a_person_does(text: str) -> None:
    assert compounds.smiles_of(text) == "CC(C)(c1ccc(O)cc1)c1ccc(O)cc1"


def test_no_name_hides_a_smiles_and_other_texts_stay() -> None:
    for name in compounds.SMILES:
        for text in (name, name.upper()):
            assert " " in text or Chem.MolFromSmiles(text) is None
    assert compounds.smiles_of("CCO ") == "CCO "
