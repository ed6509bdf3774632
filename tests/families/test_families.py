"""Every family of models: names, gradients, activations, steering, restoration; and the documented table is current."""

import pytest

from docs.model_families import PAGE, row
from tests.adapters.zoo import lens_major
from tests.families import FAMILIES, Examination

RELEASE = (pytest.mark.release, pytest.mark.slow)
CASES = [
    pytest.param(family, marks=() if family.common else RELEASE, id=f"{family.group}: {family.name}") for family in FAMILIES
]


@pytest.mark.filterwarnings("ignore")  # the foreign libraries' own notices
@pytest.mark.parametrize("family", CASES)
def test_family(family):
    findings = Examination.of(family).findings()
    if lens_major() == 3 or "TransformerLens" not in family.group:
        assert row(family, findings) in PAGE.read_text().splitlines(), "run: python -m docs.model_families"


def test_the_page_has_a_row_of_every_family_and_no_other():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in rows if not line.startswith("| family |")]
    assert names == [family.name for family in FAMILIES]


def test_the_zoo_is_large():
    groups = [family.group for family in FAMILIES]
    assert sum("modules" not in group and "TransformerLens" not in group for group in groups) >= 40
    assert groups.count("Plain modules") >= 15
    assert sum(family.common for family in FAMILIES) >= len(FAMILIES) / 3
