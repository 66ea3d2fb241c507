#!/usr/bin/env bash
# Takes `python -m benchmarks.gpu` to a machine that has a GPU, Python 3.12, torch and transformers, and nothing else.
#
#   benchmarks/gpu.sh pack FOLDER [MODEL [DATA]]    here: writes code, wheels, weights and data into FOLDER, in parts of 60 MB
#   bash gpu.sh run [OPTION ...]                    there, in that folder: puts them together and runs; options are the script's
#
# MODEL is the folder of a model in safetensors, DATA that of a BEIR collection; with both, the chain on SciFact is run as well.
# A part may be carried alone: those that are already there are kept. Results are in FOLDER/results, part by part.
set -euo pipefail

PART_BYTES=60000000
# What torch and transformers do not bring along: pydantic with what it needs, and these, which need numpy and each other alone.
WHEELS=(pyarrow PyStemmer ir_measures pytrec-eval-terrier scipy)

pack() {
    local folder=$1 model=${2:-} data=${3:-} here
    here=$(cd "$(dirname "$0")/.." && pwd)
    mkdir -p "$folder/wheels"
    cp "$here/benchmarks/gpu.sh" "$folder/"
    tar -czf "$folder/code.tar.gz" -C "$here" --exclude __pycache__ zerogr benchmarks examples pyproject.toml
    local download=(python -m pip download --quiet --only-binary=:all: --python-version 3.12 --dest "$folder/wheels"
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform any)
    "${download[@]}" pydantic
    "${download[@]}" --no-deps "${WHEELS[@]}"
    if [ -n "$model" ]; then
        tar -chf - -C "$model" . | split -b "$PART_BYTES" -d -a 3 - "$folder/model.tar."
    fi
    if [ -n "$data" ]; then
        tar -chzf - -C "$data" . | split -b "$PART_BYTES" -d -a 3 - "$folder/data.tar.gz."
    fi
    du -sh "$folder"
}

run() {
    local place arguments=()
    place=$(pwd)
    mkdir -p unpacked/code results
    tar -xzf code.tar.gz -C unpacked/code
    python -m pip install --quiet --no-index --no-deps --target unpacked/packages wheels/*.whl
    if compgen -G "model.tar.*" > /dev/null; then
        mkdir -p unpacked/model && cat model.tar.* | tar -xf - -C unpacked/model
        arguments+=(--model "$place/unpacked/model")
    fi
    if compgen -G "data.tar.gz.*" > /dev/null; then
        mkdir -p unpacked/data && cat data.tar.gz.* | tar -xzf - -C unpacked/data
        arguments+=(--data "$place/unpacked/data")
    fi
    cd unpacked/code
    PYTHONPATH="$place/unpacked/code:$place/unpacked/packages" HF_HUB_OFFLINE=1 \
        python -m benchmarks.gpu --out "$place/results" "${arguments[@]}" "$@"
}

case ${1:-} in
    pack) shift; pack "$@" ;;
    run) shift; run "$@" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
