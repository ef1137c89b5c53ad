"""What a label is, in SNOMED CT, by its name.

The table holds keywords of pydicom's dictionary of codes, which is made from PS3.16, so that no code is typed here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

# Categories of CID 7150, and the properties (CID 7151 and those it includes) by the names that people give them.
_STRUCTURES = {
    "brain": "Brain", "cerebellum": "Cerebellum", "brainstem": "BrainStem", "thalamus": "Thalamus",
    "putamen": "Putamen", "caudate": "CaudateNucleus", "hippocampus": "Hippocampus", "ventricle": "BrainVentricle",
    "skull": "Skull", "spinal cord": "SpinalCord", "eye": "Eye", "optic disc": "OpticNerveHead", "retina": "Retina",
    "fovea": "FoveaCentralis", "optic nerve": "OpticNerve", "thyroid": "Thyroid", "trachea": "Trachea",
    "esophagus": "Esophagus", "oesophagus": "Esophagus", "lung": "Lung", "heart": "Heart", "aorta": "Aorta",
    "liver": "Liver", "spleen": "Spleen", "kidney": "Kidney", "pancreas": "Pancreas", "stomach": "Stomach",
    "gallbladder": "Gallbladder", "adrenal gland": "AdrenalGland", "colon": "Colon", "bladder": "Bladder",
    "urinary bladder": "Bladder", "prostate": "Prostate", "uterus": "Uterus", "ovary": "Ovary", "breast": "Breast",
    "femur": "Femur", "rib": "Rib", "vertebra": "Vertebra", "spine": "Spine", "bone": "Bone",
    "nucleus": "Nucleus", "cell nucleus": "Nucleus", "micronucleus": "Nucleus", "cell": "Cell",
    "organ": "Organ",
}  # fmt: skip
_TISSUES = {
    "white matter": "WhiteMatter", "gray matter": "GrayMatter", "grey matter": "GrayMatter", "muscle": "MuscleTissue",
    "fat": "AdiposeTissue", "skin": "Skin", "blood vessel": "BloodVessel", "vessel": "BloodVessel",
    "artery": "Artery", "vein": "Vein", "lymph node": "LymphNode", "tissue": "Tissue",
}  # fmt: skip
_SUBSTANCES = {"cerebrospinal fluid": "CerebrospinalFluid", "csf": "CerebrospinalFluid", "blood": "Blood"}
_ABNORMAL = {
    "lesion": "Lesion", "tumor": "Neoplasm", "tumour": "Neoplasm", "neoplasm": "Neoplasm", "mass": "Mass",
    "nodule": "Nodule", "edema": "Edema", "oedema": "Edema", "hemorrhage": "Hemorrhage", "haemorrhage": "Hemorrhage",
    "necrosis": "Necrosis", "cyst": "Cyst",
}  # fmt: skip
_TABLES = (
    ("AnatomicalStructure", _STRUCTURES),
    ("Tissue", _TISSUES),
    ("BodySubstance", _SUBSTANCES),
    ("MorphologicallyAbnormalStructure", _ABNORMAL),
)
_PLURALS = {
    "nuclei": "nucleus", "micronuclei": "micronucleus", "vertebrae": "vertebra", "ovaries": "ovary",
    "masses": "mass", "arteries": "artery",
}  # fmt: skip
_SIDES = {"left": "Left", "right": "Right"}


def coded(name: str) -> tuple[Code, Code, Code | None]:
    """Category and type of a segment, and its side.

    Parameters
    ----------
    name : str
        What the label is called: ``"brain"``, ``"left kidney"``, ``"kidney_right"``, ``"Nuclei"``.

    Returns
    -------
    category, type : Code
        Segmented Property Category and Type (PS3.3 C.8.20.4). A name that is not known is a *tissue* of type
        *tissue*; what it is called stands in the segment's label all the same.
    side : Code or None
        Left or right, as the modifier of the type.
    """
    from pydicom.sr.codedict import codes

    words = re.sub(r"[^a-z]+", " ", name.lower()).split()
    sides = [_SIDES[word] for word in words if word in _SIDES]
    plain = " ".join(_PLURALS.get(word, word) for word in words if word not in _SIDES)
    for category, table in _TABLES:
        for candidate in (plain, plain.removesuffix("s")):
            if candidate in table:
                side = getattr(codes.SCT, sides[0]) if len(sides) == 1 else None
                return getattr(codes.cid7150, category), getattr(codes.SCT, table[candidate]), side
    finding = words[-1].removesuffix("s") if words else ""
    if finding in _ABNORMAL:  # "liver lesion"
        return codes.cid7150.MorphologicallyAbnormalStructure, getattr(codes.SCT, _ABNORMAL[finding]), None
    return codes.cid7150.Tissue, codes.SCT.Tissue, None
