import json

import numpy as np
import pytest

from models.crystals.chgnet.anchors import (
    ANCHORS_FILE,
    N_ELEMENTS,
    PRETRAINED_WEIGHTS,
    NoAnchorsError,
    element_anchor,
    element_structures,
    load_anchors,
    load_stock_model,
)


@pytest.mark.parametrize("weights", PRETRAINED_WEIGHTS)
def test_every_element_has_a_finite_anchor(weights):
    anchors = load_anchors(weights)
    assert anchors.shape == (N_ELEMENTS,)
    assert anchors.dtype == np.float64
    assert np.isfinite(anchors).all()
    known = np.delete(anchors, [Z - 1 for Z in (84, 85, 86, 87, 88)])  # Po to Ra: CHGNet never saw them
    # PBE total energies stay above plutonium's -14 eV/atom; r2SCAN's count core states, down to -87.
    assert (-90 if weights == "r2scan" else -15) < known.min() < known.max() < 1


def test_anchors_are_indexed_by_atomic_number():
    by_element = json.loads(ANCHORS_FILE.read_text())["0.3.0"]
    anchors = load_anchors("0.3.0")
    assert anchors[1 - 1] == by_element["H"]
    assert anchors[26 - 1] == by_element["Fe"]
    assert anchors[94 - 1] == by_element["Pu"]


def test_weights_without_anchors_are_refused():
    with pytest.raises(NoAnchorsError, match=r"'random'.*0\.3\.0, 0\.2\.0, r2scan"):
        load_anchors("random")


def test_recomputing_gives_the_committed_anchors():
    model, shapes, committed = load_stock_model("0.3.0"), element_structures(), load_anchors("0.3.0")
    for element, number in (("O", 8), ("Au", 79), ("Pb", 82)):
        anchor = element_anchor(model, element, shapes)
        assert anchor.energy_ev_per_atom == pytest.approx(committed[number - 1], abs=1e-4)


def test_an_anchor_sits_at_the_known_structure():
    model, shapes = load_stock_model("0.3.0"), element_structures()
    tungsten, oxygen = element_anchor(model, "W", shapes), element_anchor(model, "O", shapes)
    assert tungsten.structure == "A2"
    assert tungsten.relative_length == pytest.approx(1.0, abs=0.03)
    assert oxygen.structure == "dimer"
    assert oxygen.relative_length == pytest.approx(1.0, abs=0.03)
