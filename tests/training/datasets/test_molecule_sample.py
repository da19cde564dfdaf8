import numpy as np
from rdkit import Chem

from bookserve.training.datasets import molecule_sample


def test_every_molecule_is_real_chemistry_and_none_comes_twice() -> None:
    smiles, results = molecule_sample.draw(400, 12, seed=0)
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    assert all(molecule is not None for molecule in molecules)
    assert len(set(smiles)) == 400
    assert len({Chem.MolToSmiles(molecule) for molecule in molecules}) > 350
    assert results.shape == (400, 12)
    assert results.dtype == np.float32


def test_every_assay_has_actives_inactives_and_unmeasured() -> None:
    _, results = molecule_sample.draw(1_000, 12, seed=0)
    assert set(np.unique(results[~np.isnan(results)])) == {0.0, 1.0}
    assert 0.12 < np.isnan(results).mean() < 0.22
    assert (np.nanmean(results, axis=0) > 0.05).all()
    assert (np.nanmean(results, axis=0) < 0.5).all()
    assert len({tuple(column) for column in np.nan_to_num(results, nan=2).T}) == 12


def test_the_seed_decides_everything() -> None:
    first, again, other = (molecule_sample.draw(50, 3, seed) for seed in (1, 1, 2))
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0] != other[0]
