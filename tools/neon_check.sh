#!/usr/bin/env bash
# Run gumba's kernel and model tests as 64-bit Arm code, emulated on an x86 Debian machine.
#
#     [SET=neon_i8mm|neon|neon_base] tools/neon_check.sh FOLDER [PYTEST ARGUMENTS | SCRIPT.py ARGUMENTS]
#
# SET: as a processor with integer matrix products (the default), with dot products only, or with neither (Raspberry Pi 4).
# The kernels' own tests also take the lesser sets, of block formats with -m "isas or not isas"; what runs a model takes SET.
# SCRIPT.py: to run instead of tests, such as `tests/support/logit_hashes.py portable`, which records hashes.
# FOLDER (about 600 MB, filled on the first run, kept) takes an arm64 Python from Debian's packages, the aarch64 wheels of
# what the tests need, and qemu's user emulation. Nothing is installed on this machine and no root rights are needed.
# Slow (every import takes seconds): right for correctness, not for speed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:?usage: tools/neon_check.sh FOLDER [PYTEST ARGUMENTS | SCRIPT.py ARGUMENTS]}")
shift
tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    tests=(tests/models -k 'not every_instruction_set')
fi

run=(-m pytest -p no:cacheprovider)
if [[ ${tests[0]} == *.py && ${tests[0]##*/} != test_* ]]; then
    run=()
fi

unpack() { for package in "$@"; do dpkg-deb -x "$package" "$root"; done; }

root=$folder/root site=$folder/site apt=$folder/apt
if [ ! -e "$folder/complete" ]; then
    mkdir -p "$root" "$site" "$apt"/{state/lists/partial,cache/archives/partial}
    : > "$apt/status"
    options=(-q -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
        -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1)
    arm=("${options[@]}" -o APT::Architecture=arm64 -o APT::Architectures::=arm64)
    apt-get "${arm[@]}" update
    # With an empty list of installed packages this downloads Python with all that it stands on.
    apt-get "${arm[@]}" --yes --download-only --no-install-recommends install python3 libstdc++6
    unpack "$apt"/cache/archives/*_{arm64,all}.deb
    apt-get "${options[@]}" update
    (cd "$folder" && apt-get "${options[@]}" download qemu-user-static && dpkg-deb -x qemu-user-static_*.deb qemu)
    version=$(cd "$root/usr/bin" && echo python3.*[0-9])
    python3 -m pip install --quiet --target "$site" --python-version "${version#python}" --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 --only-binary=:all: \
        numpy numba gguf regex platformdirs pytest hypothesis
    touch "$folder/complete"
fi

python=$(echo "$root"/usr/bin/python3.*[0-9])
# Emulation hides the processor's features from numba: name them.
features=+neon,+fp-armv8
case ${SET:=neon_i8mm} in
    neon_i8mm) features+=,+fullfp16,+dotprod,+i8mm ;;
    neon) features+=,+fullfp16,+dotprod ;;
    neon_base) ;;
    *) echo "SET=$SET: expected neon_i8mm, neon or neon_base" >&2 && exit 2 ;;
esac
export NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES=$features
export GUMBA_ISA=$SET GUMBA_CACHE_DIR=$folder/cache PYTHONPATH=$site:runtime:convert:tests PYTHONDONTWRITEBYTECODE=1
exec "$folder/qemu/usr/bin/qemu-aarch64-static" -cpu max -L "$root" "$python" "${run[@]}" "${tests[@]}"
