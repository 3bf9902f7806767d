"""Imports go one way, those inside functions too, and never in a circle."""

from __future__ import annotations

import grimp
import networkx
import pytest

# From the ground up. `registration` names what it registers and imports none of it.
FLOORS = (
    {"compat", "config_files", "errors", "header", "lazy_names", "safe_write", "version"},
    {"images"},
    {"datasets", "evaluation", "models"},
    {"checkpoints"},
    {"engine", "deploy"},
    {"apis"},
    {"commands"},
    {"registration"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@pytest.fixture(scope="module", name="house")
def _house() -> grimp.ImportGraph:
    return grimp.build_graph("mmseg_eomt", exclude_type_checking_imports=True, cache_dir=None)


def edges(house: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Who imports whom, without the name of the package."""
    return {
        (importer.partition(".")[2], imported.partition(".")[2])
        for importer in house.modules
        for imported in house.find_modules_directly_imported_by(importer)
    }


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_a_floor(house: grimp.ImportGraph) -> None:
    rooms = {child.partition(".")[2] for child in house.find_children("mmseg_eomt")}
    assert rooms == set(FLOOR_OF)


def test_imports_go_down(house: grimp.ImportGraph) -> None:
    up = {
        (importer, imported)
        for importer, imported in edges(house)
        if importer and imported and FLOOR_OF[room(importer)] < FLOOR_OF[room(imported)]
    }
    assert not up


def test_imports_make_no_circle(house: grimp.ImportGraph) -> None:
    graph = networkx.DiGraph(edge for edge in edges(house) if all(edge))
    circles = [part for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    assert not circles
