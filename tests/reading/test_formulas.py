"""Formulas: what has one meaning is read, what is read otherwise than written is noted, the rest is refused."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition

from data.crystals.formulas import FormulaError, element_amounts


@pytest.mark.parametrize(
    "formula",
    [
        "Fe2O3", "(La0.7Sr0.3)MnO3", "C60", "CO", "Co", "NO", "Na1.0Cl1.0", "H", "Na0.5", "Ca3(PO4)2OH", "Li0.5CoO2",
        "Fe0.620C0.000953Mn0.000521Si0.00102Cr0.000110Ni0.192", "YBa2Cu3O6.5F0.5", "LiNi0.5Mn1.5O4",
        "Fe2 O3", "Fe 2 O 3", "Ca5(PO4)3(OH)", "Ca (OH)2", "Ag(AuS)2", "CH3CH2OH", "Fe1e-05Ni", "Zr0.655Al0.15Ni0.195",
        "Fe4(Fe(CN)6)3", "La0.7Sr0.3MnO2.95", "InF",
    ],
)  # fmt: skip
def test_plain_formulas_mean_what_pymatgen_reads(formula):
    amounts, notes = element_amounts(formula)
    assert amounts == pytest.approx(Composition(formula).get_el_amt_dict())
    assert notes == ()


@pytest.mark.parametrize(
    ("formula", "plain", "note"),
    [
        *((formula, "CuSO4(H2O)5", "CuSO4 and 5 ?H2O") for formula in (
            "CuSO4·5H2O", "CuSO4.5H2O", "CuSO4*5H2O", "CuSO4•5H2O", "CuSO4 . 5H2O", "CuSO4 · 5 H2O", "CuSO4.5 H2O",
        )),
        ("CaSO4·0.5H2O", "CaSO4.5H", "CaSO4 and 0.5H2O"),
        ("Na0.33CoO2·1.3H2O", "Na0.33CoO3.3H2.6", "1.3H2O"),
        ("Fe2(SO4)3.9H2O", "Fe2S3O21H18", "hydrate"),
        ("LiOH.H2O", "LiOHH2O", "hydrate"),
        ("3CaO.Al2O3", "Ca3Al2O6", "3CaO and Al2O3"),
        ("Fe₂O₃", "Fe2O3", "subscripts"),
        ("K₄[Fe(CN)₆]", "K4Fe(CN)6", "subscripts"),
        ("Fe<sub>2</sub>O<sub>3</sub>", "Fe2O3", "subscripts"),
        ("Fe$_2$O$_{3}$", "Fe2O3", "subscripts"),
        ("Fe_2O_{3}", "Fe2O3", "subscripts"),
        ("\u03b1-Fe2O3", "Fe2O3", "names a phase and is left out"),
        ("D2O", "H2O", "deuterium"),
        ("HTO", "H2O", "tritium"),
        ("La1.0Sr0.0MnO3", "LaMnO3", "with the amount 0 are left out"),
    ],
)  # fmt: skip
def test_what_is_read_otherwise_than_written_is_noted(formula, plain, note):
    amounts, notes = element_amounts(formula)
    assert amounts == pytest.approx(Composition(plain).get_el_amt_dict())
    assert any(re.search(note, one) and f": {formula}" in one for one in notes), notes


@pytest.mark.parametrize("formula", ["[NH4]Cl", "{Fe}2O3", "{Y3}[Fe2](Fe3)O12", "  NaCl  ", "Sb2Te3\n", "2H2O"])
def test_brackets_of_every_kind_and_white_space_say_nothing_of_their_own(formula):
    plain = formula.strip().translate(str.maketrans("[]{}", "()()")).replace("2H2O", "H4O2")
    assert element_amounts(formula) == (Composition(plain).get_el_amt_dict(), ())


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("", "the formula is missing"),
        ("NaN", "missing: the cell holds the word 'NaN'"),
        ("None", "missing: the cell holds the word"),
        ("INF", "missing: the cell holds the word"),
        ("UNKNOWN", "missing: the cell holds the word"),
        ("FE2O3", "no element E; symbols are written as in Fe"),
        ("fe2o3", "cannot be read from 'fe2o3' on .symbols begin with a capital"),
        ("La(1-x)SrxMnO3", "from '-x"),
        ("Fe2O3 (hematite)", "may be the name of a phase"),
        ("TiO2 (B)", "may be the name of a phase"),
        ("TiO2(B)", "may be the name of a phase"),
        ("TiO2-x", "from '-x' on"),
        ("Fe3+2O3", "from .*2O3' on"),
        ("Li+", "on; expected"),
        ("Fe³⁺", "on; expected"),
        ("X2O", "no element X"),
        ("VaN", "no element Va"),
        ("Ni80Fe20 wt%", "from 'wt%' on"),
        ("Al2O3/SiO2", "from '/SiO2' on"),
        ("GaAs:Si", "from ':Si' on"),
        ("1e3", "the number 1000 follows no element"),
        ("mp-149", "cannot be read"),
        ("Na-Cl", "from '-Cl' on"),
        ("Fe0O", "perhaps the letter O is meant"),
        ("Ti02", "perhaps the letter O is meant"),
        ("Fe203", "may have a zero where the letter O is meant"),
        ("Fe-1O2", "from '-1O2' on"),
        ("CaSO40.5H2O", "which of its dots are decimal points is not clear"),
        ("CaSO4.0.5H2O", "which of its dots"),
        ("Al2O3.2SiO2.2H2O", "which of its dots"),
        ("3CaO.2SiO2.3H2O", "which of its dots"),
        ("CoCl2.6NH3", "may be a decimal point or stand between two parts"),
        ("2CaO.1.5SiO2", "may be a decimal point or stand between two parts"),
        ("CaO.6Al2O3", "write 0.6 for an amount and ·6 for a part"),
        ("NaCl 2H2O", "may end an amount or a part"),
        ("CuSO4 5H2O", "may end an amount or a part"),
        ("Fe2₃", "beside another number"),
        ("(Mg,Fe)2SiO4", "the decimal point is a dot"),
        ("()2", "brackets is empty"),
        ("(Fe2O3", "is not closed"),
        ("(Fe]2", "do not match"),
        ("CuSO4··5H2O", "nothing stands on one side"),
        ("Fe" * 600, "more than 1000"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_or_two_is_refused(formula, reason):
    with pytest.raises(FormulaError, match=reason):
        element_amounts(formula)


@given(st.text(string.ascii_letters + string.digits + "()[]{}.·* +-₂", max_size=12))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_text_is_read_or_refused_and_amounts_are_above_nothing(text):
    try:
        amounts, _ = element_amounts(text)
    except FormulaError:
        return
    assert amounts
    assert all(0 < amount < float("inf") for amount in amounts.values())
