"""What a run records of itself, whoever started it."""

from dataclasses import dataclass

from dual_distill.trainer import differing_fields


def test_settings_are_what_differs_and_name_no_place() -> None:
    @dataclass
    class Arguments:
        output_dir: str = "out"
        hub_token: str | None = None
        max_steps: int = 1
        layer_map: dict[int, int] | None = None

    given = Arguments("/somewhere/else", "hf_secret", 5, {-1: -1})
    assert differing_fields((given, Arguments())) == {"max_steps": 5, "layer_map": {"-1": -1}}
