"""The folder of a real model: what its `load_stories.py` offers, as other benchmarks take it."""

import importlib.util
from pathlib import Path
from types import ModuleType


def stories_in(folder: Path) -> ModuleType:
    """The module `load_stories.py` of a folder, with `load_hooked()`, `load_hf()` and `load_tokens()`.

    Raises:
        SystemExit: The folder holds none.
    """
    path = Path(folder) / "load_stories.py"
    if not path.is_file():
        raise SystemExit(f"{folder} holds no load_stories.py with load_hooked(), load_hf() and load_tokens().")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
