"""What PyInstaller cannot see of gumba by itself; run by PyInstaller, never imported.

Compiled kernels are kept under a hash of the sources that they come from, and of numba's version: these files go along as
they are, so that a frozen application finds the kernels that the same sources made elsewhere, and no others.
"""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

from gumba.jit.kernel_cache import COMPILED_FOLDERS

datas = collect_data_files(
    "gumba", include_py_files=True, includes=[f"{folder}/**/*.py" for folder in COMPILED_FOLDERS]
)
datas += collect_data_files("numba", include_py_files=True, includes=["_version.py"])

#: Modules that gumba imports by name when they are first asked for. The command line is packed where it is imported.
hiddenimports = collect_submodules("gumba", filter=lambda name: name.split(".")[1:2] not in (["cli"], ["_pyinstaller"]))
