import subprocess
import sys

import pytest

from bookserve.clients.inputs import molecules, smiles_fault


@pytest.mark.parametrize(
    ("smiles", "place", "text"),
    [
        ("CCX", 2, "syntax error at character 3, 'X'"),
        ("CC(C", 2, "extra open parentheses at character 3, '('"),
        ("C(C(C(", 5, "syntax error at character 6, '('"),
        ("CC)C", 2, "extra close parentheses at character 3, ')'"),
        ("C" * 300 + "?" + "C" * 10, 300, "at character 301, '?'"),
        ("C1CC", 1, "unclosed ring at character 2, '1'"),
        ("[13CH4]C1CC1C2CC", 13, "unclosed ring at character 14, '2'"),
        ("C%12CC1CC1", 1, "unclosed ring at character 2, '%'"),
        ("CO(C)(C)C", 1, "valence for atom # 1 O, 4, is greater than permitted at character 2, 'O'"),
        ("[H]OC(Cl)(Br)(C)(C)C", 4, "is greater than permitted at character 5, 'C'"),
        ("CCcc", 2, "non-ring atom 2 marked aromatic at character 3, 'c'"),
        ("c1cccc1", 0, "Can't kekulize mol"),
    ],
)
def test_the_reason_names_the_character(smiles, place, text) -> None:
    reason, position = smiles_fault.fault(smiles)
    assert position == place
    assert text in reason
    with pytest.raises(molecules.MoleculeError) as caught:
        molecules.fingerprint(smiles)
    assert caught.value.position == place


def test_the_log_is_as_before_and_nothing_is_written() -> None:
    code = (
        "import logging; from bookserve.clients.inputs import smiles_fault; from rdkit import Chem;"
        " log = logging.getLogger('rdkit'); before = list(log.handlers); smiles_fault.fault('CCX');"
        " Chem.MolFromSmiles('CCX'); print(log.handlers == before)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("True\n", "")
