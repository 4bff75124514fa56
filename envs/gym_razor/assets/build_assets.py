"""Rebuild the decimated Panda meshes from an installed robosuite.

Usage: `python -m gym_razor.assets.build_assets`.

Needs the `assets` extra (fast-simplification, trimesh). Sub-meshes of a link are merged by colour
class
(light, dark, accent) and decimated twice: `*_hd` for pictures that people look at, `*_lo` for the
policy cameras.
The collision shapes are primitives in `scene.xml.in`, so no collision mesh is needed.
"""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Mesh = tuple[npt.NDArray[Any], npt.NDArray[Any]]

OUT = Path(__file__).parent / "meshes"
# Faces kept per part: (links light, links dark, hand, finger).
FACES = {"hd": (1100, 260, 900, 200), "lo": (150, 40, 130, 40)}
MIN_DARK_FACES = 12


def robosuite_assets() -> Path:
    """Return robosuite's asset folder without the slow and noisy import of robosuite."""
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise SystemExit("robosuite is not installed: run `make setup` first")
    return Path(spec.origin).parent / "models" / "assets"


def colour_class(rgba: str) -> str:
    """Name the colour class of a material: light, dark or accent (the blue parts)."""
    red, green, blue = (float(v) for v in rgba.split()[:3])
    if red < 0.1 and blue > 0.5:
        return "accent"
    return "light" if (red + green + blue) / 3 > 0.5 else "dark"


def decimate(vertices: npt.NDArray[Any], faces: npt.NDArray[Any], target: int) -> Mesh:
    """Decimate by quadric error to about `target` faces."""
    import fast_simplification

    if len(faces) <= target:
        return vertices, faces
    simplified: Mesh = fast_simplification.simplify(
        vertices.astype(np.float32), faces.astype(np.int32), 1.0 - target / len(faces), agg=4
    )
    return simplified


def main() -> None:
    """Write every part at both levels of detail as binary STL."""
    import trimesh

    root = robosuite_assets()
    robot = ET.parse(root / "robots/panda/robot.xml").getroot()
    rgba = {m.get("name"): m.get("rgba", "1 1 1 1") for m in robot.iter("material")}
    files = {m.get("name"): m.get("file", "") for m in robot.iter("mesh")}
    parts: dict[str, list[Any]] = {}
    for geom in robot.iter("geom"):
        name = geom.get("mesh", "")
        if "_vis" not in name:
            continue
        mesh = trimesh.load(root / "robots/panda" / files[name], force="mesh", process=True)
        key = f"{name.split('_')[0]}_{colour_class(rgba[geom.get('material')])}"
        parts.setdefault(key, []).append(mesh)
    grippers = root / "grippers/meshes/panda_gripper"
    parts["hand_light"] = [trimesh.load(grippers / "hand_vis.stl", force="mesh")]
    parts["finger_dark"] = [trimesh.load(grippers / "finger_vis.stl", force="mesh")]

    OUT.mkdir(exist_ok=True)
    for level, (light, dark, hand, finger) in FACES.items():
        total = 0
        for key, meshes in sorted(parts.items()):
            mesh = trimesh.util.concatenate(meshes)
            mesh.merge_vertices(merge_tex=True, merge_norm=True)
            link, colour = key.split("_")
            by_colour = light if colour == "light" else dark
            target = {"hand": hand, "finger": finger}.get(link, by_colour)
            if colour != "light" and level == "lo" and len(mesh.faces) < MIN_DARK_FACES:
                continue
            vertices, faces = decimate(mesh.vertices, mesh.faces, target)
            trimesh.Trimesh(vertices, faces, process=False).export(OUT / f"{key}_{level}.stl")
            total += len(faces)
            print(f"{key}_{level}: {len(mesh.faces)} -> {len(faces)} faces")
        print(f"{level}: {total} faces")


if __name__ == "__main__":
    main()
