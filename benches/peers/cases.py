"""What compare.py times: the same sizes for both sides, which read them from cases.json."""
import json
import pathlib

_cases = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())
STEPS, LOSS, BANK, OPS = (_cases[kind] for kind in ("step", "loss", "bank", "op"))
