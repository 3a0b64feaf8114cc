"""Files and modules of gumba that PyInstaller does not find; run by PyInstaller, never imported.

Compiled kernels are cached under a hash of their sources and of numba's version. These files are included unchanged, so that a
frozen application finds kernels that were compiled elsewhere from the same sources.
"""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

from gumba.jit.kernel_cache import COMPILED_FOLDERS

datas = collect_data_files(
    "gumba", include_py_files=True, includes=[f"{folder}/**/*.py" for folder in COMPILED_FOLDERS]
)
datas += collect_data_files("numba", include_py_files=True, includes=["_version.py"])

#: Modules that gumba imports by name when they are first used. The command line is included if the application imports it.
hiddenimports = collect_submodules("gumba", filter=lambda name: name.split(".")[1:2] not in (["cli"], ["_pyinstaller"]))
