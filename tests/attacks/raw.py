"""The same packages in the hands of their own frameworks: ``python -m tests.attacks.raw JOBS DIR``.

Shows that the attacks work, so that the tests that see nothing happen can fail.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path


def torch_load(path: Path) -> None:
    """A bundle's weights as nnU-Net and many scripts load theirs."""
    import torch

    torch.load(path / "models" / "model.pt", weights_only=False)


def monai_bundle(path: Path) -> None:
    """A bundle's preprocessing, with the evaluation of expressions switched off."""
    from monai.bundle import ConfigParser
    from monai.bundle.config_item import ConfigExpression

    ConfigExpression.run_eval = False
    parser = ConfigParser()
    parser.read_config(path / "configs" / "inference.json")
    parser.get_parsed_content("preprocessing", instantiate=True)


def jit_load(path: Path) -> None:
    import torch

    torch.jit.load(path)


def bioimageio_core(path: Path) -> None:
    from bioimageio.core import load_model_description
    from bioimageio.core.backends import create_model_adapter

    described = load_model_description(path / "rdf.yaml", perform_io_checks=False)
    create_model_adapter(described, weight_format_priority_order=["pytorch_state_dict"])


def main(jobs: list[list[str]], allowed: str) -> None:
    """Open packages by the functions above; a job ``["guarded", function, path]`` is watched by `guard`."""
    import monai.bundle  # noqa: F401  # what importing it opens is no attack

    from tests.attacks.guard import Guard

    guard = Guard([Path(allowed)])
    warnings.simplefilter("ignore")
    for *guarded, name, path in jobs:
        guard.armed = bool(guarded)
        try:
            globals()[name](Path(path))
        except BaseException:  # noqa: BLE001  # an attack may end in anything
            guard.armed = False
            traceback.print_exc()
        finally:
            guard.armed = False
    print("\n".join(guard.seen))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
