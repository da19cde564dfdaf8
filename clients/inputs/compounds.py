"""Names of common compounds, so that a person may write "aspirin" where a SMILES is wanted.

The gateway, its page and `bookserve predict` take these names; a training takes SMILES only.
"""

from types import MappingProxyType

SMILES = MappingProxyType(
    {
        "acetaminophen": "CC(=O)Nc1ccc(O)cc1",
        "acetic acid": "CC(O)=O",
        "acetone": "CC(C)=O",
        "adrenaline": "CNC[C@H](O)c1ccc(O)c(O)c1",
        "aniline": "Nc1ccccc1",
        "ascorbic acid": "OC[C@H](O)[C@H]1OC(=O)C(O)=C1O",
        "aspirin": "CC(=O)Oc1ccccc1C(O)=O",
        "atrazine": "CCNc1nc(Cl)nc(NC(C)C)n1",
        "benzene": "c1ccccc1",
        "bisphenol a": "CC(C)(c1ccc(O)cc1)c1ccc(O)cc1",
        "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
        "camphor": "CC1(C)C2CCC1(C)C(=O)C2",
        "capsaicin": "COc1cc(CNC(=O)CCCC/C=C/C(C)C)ccc1O",
        "chloroform": "ClC(Cl)Cl",
        "cholesterol": "CC(C)CCCC(C)C1CCC2C1(CCC3C2CC=C4C3(CCC(C4)O)C)C",
        "citric acid": "OC(=O)CC(O)(CC(O)=O)C(O)=O",
        "curcumin": "COc1cc(/C=C/C(=O)CC(=O)/C=C/c2ccc(O)c(OC)c2)ccc1O",
        "ddt": "ClC(Cl)(Cl)C(c1ccc(Cl)cc1)c1ccc(Cl)cc1",
        "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc12",
        "diclofenac": "OC(=O)Cc1ccccc1Nc1c(Cl)cccc1Cl",
        "dopamine": "NCCc1ccc(O)c(O)c1",
        "estradiol": "CC12CCC3C(C1CCC2O)CCC4=C3C=CC(=C4)O",
        "ethanol": "CCO",
        "formaldehyde": "C=O",
        "genistein": "O=c1c(-c2ccc(O)cc2)coc2cc(O)cc(O)c12",
        "glucose": "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O",
        "glycerol": "OCC(O)CO",
        "glycine": "NCC(O)=O",
        "glyphosate": "OC(=O)CNCP(O)(O)=O",
        "histamine": "NCCc1cnc[nH]1",
        "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(O)=O",
        "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
        "melatonin": "COc1ccc2[nH]cc(CCNC(C)=O)c2c1",
        "menthol": "CC(C)C1CCC(C)CC1O",
        "metformin": "CN(C)C(=N)NC(N)=N",
        "methanol": "CO",
        "naphthalene": "c1ccc2ccccc2c1",
        "naproxen": "COc1ccc2cc(ccc2c1)[C@H](C)C(O)=O",
        "nicotine": "CN1CCC[C@H]1c1cccnc1",
        "paracetamol": "CC(=O)Nc1ccc(O)cc1",
        "phenol": "Oc1ccccc1",
        "progesterone": "CC(=O)C1CCC2C1(CCC3C2CCC4=CC(=O)CCC34C)C",
        "quercetin": "O=c1c(O)c(-c2ccc(O)c(O)c2)oc2cc(O)cc(O)c12",
        "resveratrol": "Oc1ccc(/C=C/c2cc(O)cc(O)c2)cc1",
        "serotonin": "NCCc1c[nH]c2ccc(O)cc12",
        "styrene": "C=Cc1ccccc1",
        "tamoxifen": "CC/C(=C(\\c1ccccc1)c1ccc(OCCN(C)C)cc1)c1ccccc1",
        "tcdd": "ClC1=CC2=C(C=C1Cl)OC3=CC(Cl)=C(Cl)C=C3O2",
        "testosterone": "CC12CCC3C(C1CCC2O)CCC4=CC(=O)CCC34C",
        "theobromine": "CN1C=NC2=C1C(=O)NC(=O)N2C",
        "thymol": "CC(C)c1ccc(C)cc1O",
        "toluene": "Cc1ccccc1",
        "triclosan": "Oc1cc(Cl)ccc1Oc1ccc(Cl)cc1Cl",
        "urea": "NC(N)=O",
        "vanillin": "COc1cc(C=O)ccc1O",
        "warfarin": "CC(=O)CC(c1ccccc1)c1c(O)c2ccccc2oc1=O",
    }
)


def smiles_of(text: str) -> str:
    """The SMILES of a compound's name, in capitals or not; any other text as it is."""
    return SMILES.get(" ".join(text.split()).lower(), text)
