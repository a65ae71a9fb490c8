"""Ways to split crystals that leave groups of them out, as values of `--split`."""

LEAVE_ELEMENTS_OUT = "leave-group-out:element"
LEAVE_MOLECULES_OUT = "leave-group-out:molecular"
