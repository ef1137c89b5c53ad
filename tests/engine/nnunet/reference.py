"""Runs nnU-Net's own predictor; a script for an environment with nnunetv2, never imported by the package.

    python reference.py jobs.json

A job: ``model`` (folder), ``folds``, ``images`` (files, one for each channel), ``previous`` (file or ""), ``out``
(file), ``mirroring``, ``checkpoint``. Everything goes through nnU-Net's reader, predictor and writer.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch


def main(jobs: list[dict]) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    for job in jobs:
        predictor = nnUNetPredictor(
            tile_step_size=0.5,
            use_gaussian=True,
            use_mirroring=job["mirroring"],
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        folds = [fold if fold == "all" else int(fold) for fold in job["folds"]]
        predictor.initialize_from_trained_model_folder(job["model"], folds, "checkpoint_final.pth")
        io = predictor.plans_manager.image_reader_writer_class()
        image, properties = io.read_images(job["images"])
        previous = io.read_seg(job["previous"])[0] if job["previous"] else None
        labels = predictor.predict_single_npy_array(image, properties, previous)
        if job["out"].endswith(".npy"):
            np.save(job["out"], labels)
        else:
            io.write_seg(labels, job["out"], properties)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(json.loads(Path(sys.argv[1]).read_text()))
