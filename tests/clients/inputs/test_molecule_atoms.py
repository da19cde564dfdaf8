"""A molecule without the share of one atom, against RDKit's own similarity maps and against the whole molecule."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem.Draw import SimilarityMaps

from bookserve.clients.inputs import molecule_atoms, molecules

CAFFEINE = "CN1C=NC2=C1C(=O)N(C(=O)N2C)C"
ESTRADIOL = "CC12CCC3C(C1CCC2O)CCC4=C3C=CC(=C4)O"
SALT = "CC(=O)[O-].[Na+]"
BIPHENYL = "c1ccccc1-c1ccccc1"
BITS, KEYS = 1024, 2 * 1024  # where in the counts the MACCS keys begin


@pytest.mark.parametrize("smiles", ["C", "CCO", CAFFEINE, ESTRADIOL, SALT, BIPHENYL])
def test_the_bits_of_an_atom_are_those_of_rdkit_s_similarity_maps(smiles: str) -> None:
    (symbol, whole), *rest = molecule_atoms.without_each(smiles, 2, BITS, ())
    molecule = Chem.MolFromSmiles(smiles)
    assert symbol == ""
    np.testing.assert_array_equal(whole.fingerprint, molecules.fingerprint(smiles))
    assert [symbol for symbol, _ in rest] == [atom.GetSymbol() for atom in molecule.GetAtoms()]
    for atom, (_, without) in enumerate(rest):
        expected = SimilarityMaps.GetMorganFingerprint(molecule, atom, radius=2, fpType="bv", nBits=BITS)
        np.testing.assert_array_equal(without.fingerprint, np.array(list(expected)))
        assert without.counts.size == without.values.size == 0


@pytest.mark.parametrize("smiles", [CAFFEINE, ESTRADIOL, SALT, BIPHENYL])
def test_what_is_counted_without_any_atom_is_the_whole(smiles: str) -> None:
    """The counts are taken apart here and made there: both are the same where nothing is left out."""
    (_, whole), *rest = molecule_atoms.without_each(smiles, 2, BITS, ("MolWt", "TPSA"))
    described = molecules.describe(smiles, 2, BITS, ("MolWt", "TPSA"))
    np.testing.assert_array_equal(whole.counts, described.counts)
    for _, without in rest:
        assert (without.counts <= whole.counts).all()
        assert without.counts[:BITS].sum() < whole.counts[:BITS].sum()
        np.testing.assert_array_equal(without.values, described.values)  # of the whole molecule


def test_a_count_loses_the_occurrences_with_the_atom_only() -> None:
    (_, whole), *rest = molecule_atoms.without_each("OCCCCO", 0, BITS, ("MolWt",))  # radius 0: the atoms themselves
    assert whole.counts[:BITS].sum() == 6
    assert [int(without.counts[:BITS].sum()) for _, without in rest] == [5] * 6
    assert [int(without.fingerprint.sum()) for _, without in rest] == [1, 1, 1, 1, 1, 1]  # one kind of atom is gone
    torsions = slice(BITS, KEYS)
    assert whole.counts[torsions].sum() == 3  # OCCC, CCCC, CCCO
    assert [int(without.counts[torsions].sum()) for _, without in rest] == [2, 1, 0, 0, 1, 2]


def test_a_key_stays_where_it_matches_elsewhere() -> None:
    hydroxyl, aromatic_rings, pieces = KEYS + 139, KEYS + 125, KEYS + 166
    (_, one), *rest = molecule_atoms.without_each("CCO", 2, BITS, ("MolWt",))
    assert one.counts[hydroxyl] == 1
    assert [int(without.counts[hydroxyl]) for _, without in rest] == [1, 1, 0]
    _, *two = molecule_atoms.without_each("OCCO", 2, BITS, ("MolWt",))
    assert [int(without.counts[hydroxyl]) for _, without in two] == [1, 1, 1, 1]
    (_, rings), *atoms = molecule_atoms.without_each(BIPHENYL, 2, BITS, ("MolWt",))
    assert rings.counts[aromatic_rings] == 1
    assert not any(without.counts[aromatic_rings] for _, without in atoms)  # each atom is of one of the two rings
    (_, salt), *ions = molecule_atoms.without_each(SALT, 2, BITS, ("MolWt",))
    assert salt.counts[pieces] == 1
    assert [int(without.counts[pieces]) for _, without in ions] == [1, 1, 1, 1, 0]  # without sodium one piece is left


def test_more_atoms_than_are_left_out_are_refused() -> None:
    assert len(molecule_atoms.without_each("C" * 100, 2, BITS, ())) == 101
    with pytest.raises(molecules.MoleculeTooLarge, match="at most 100 atoms can be explained, this one has 101"):
        molecule_atoms.without_each("C" * 101, 2, BITS, ())
    with pytest.raises(molecules.MoleculeError, match="no SMILES"):
        molecule_atoms.without_each("C1CC", 2, BITS, ())
