from bookserve.training.datasets.scaffolds import scaffold_split

BENZENES = ["c1ccccc1C", "c1ccccc1CC", "Oc1ccccc1", "Nc1ccccc1", "Clc1ccccc1"]
PYRIDINES = ["c1ccncc1C", "c1ccncc1O"]
SINGLES = ["C1CCCCC1C", "C1CCNCC1C", "c1ccoc1C"]


def test_families_stay_together_and_the_largest_train() -> None:
    smiles = [SINGLES[0], *PYRIDINES, *BENZENES, *SINGLES[1:]]
    train, valid, test = scaffold_split(smiles, 0.2, 0.1)
    assert train == [3, 4, 5, 6, 7, 1, 2]
    assert valid == [9, 8]  # of families of one size the later ones first, as deepchem has it
    assert test == [0]


def test_a_family_without_room_goes_on_whole() -> None:
    train, valid, test = scaffold_split([*BENZENES, *PYRIDINES], 0.1, 0.3)
    assert train == [5, 6]
    assert valid == []
    assert test == [0, 1, 2, 3, 4]


def test_molecules_without_a_ring_are_one_family() -> None:
    assert scaffold_split(["CC", "CCO", "CCN", "c1ccccc1"], 0.25, 0.0)[0] == [0, 1, 2]
