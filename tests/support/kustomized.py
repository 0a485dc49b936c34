"""Renders a folder of kustomize: as much of it as `deploy/kubernetes` uses, and an error for anything else.

So that the manifests can be checked where there is no kubectl. Where there is one, both are compared. The hash that
kustomize adds to the names of generated ConfigMaps is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "images", "configMapGenerator", "patches"}

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """Return the manifests of a kustomization."""
    return _applied(folder, [])


def _applied(folder: Path, manifests: list[Manifest]) -> list[Manifest]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= FIELDS, f"{folder} has fields that are not rendered here"
    for name in kustomization.get("resources", []):
        path = folder / name
        manifests = manifests + (render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text())))
    for name in kustomization.get("components", []):
        manifests = _applied(folder / name, manifests)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(folder, generator, manifests)
    for patch in kustomization.get("patches", []):
        target = _find(manifests, **patch["target"])
        for change in yaml.safe_load(patch["patch"]):
            _change(target, **change)
    for manifest in manifests:
        if "namespace" in kustomization and manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = kustomization["namespace"]
        for image in kustomization.get("images", []):
            _rename(manifest, **image)
    return manifests


def _find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    [found] = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def _generate(folder: Path, generator: dict[str, Any], manifests: list[Manifest]) -> None:
    assert set(generator) <= {"name", "envs", "literals", "behavior"}
    lines = [line for file in generator.get("envs", []) for line in (folder / file).read_text().splitlines()]
    data = dict(line.split("=", 1) for line in [*lines, *generator.get("literals", [])] if not line.startswith("#"))
    if generator.get("behavior") == "merge":
        _find(manifests, "ConfigMap", generator["name"])["data"].update(data)
    else:
        manifests.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
        )


def _change(manifest: Manifest, op: str, path: str, value: Any = None) -> None:
    """One operation of a JSON patch (RFC 6902)."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
    place: Any = manifest
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if isinstance(place, list):
        if op == "add":
            place.insert(len(place) if last == "-" else int(last), value)
        else:
            place[int(last) : int(last) + 1] = [value] if op == "replace" else []
        return
    assert op == "add" or last in place, f"there is no {path}"
    if op == "remove":
        del place[last]
    else:
        place[last] = value


def _rename(node: Any, name: str, newName: str, newTag: str | None = None) -> None:
    """Give an image that containers name another name."""
    if isinstance(node, list):
        for each in node:
            _rename(each, name, newName, newTag)
    elif isinstance(node, dict):
        image = node.get("image")
        if isinstance(image, str) and image.rsplit(":", 1)[0] == name:
            node["image"] = f"{newName}:{newTag or image.rsplit(':', 1)[1]}"
        for each in node.values():
            _rename(each, name, newName, newTag)
