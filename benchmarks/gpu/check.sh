#!/usr/bin/env bash
# Everything that needs a GPU, in one run: bash benchmarks/gpu/check.sh, from the project's root.
#
#   LIMIT_S=480            seconds for all of it; each stage has a cap, and is ended as Ctrl-C ends it
#   STAGES="tune profile"  only these of: tests plain compare profile trace tune
#   OUT=folder             where the results go (build/gpu-check)
#   DRY=1                  on a CPU, with small trainings, to see that every stage runs
#
# Leaves in $OUT: log.txt with a table of the stages at its end, plain.json (plain PyTorch, the judge of the gains that
# perftool prints), machine.json, smi.csv (clocks, power, memory), sessions.tar.gz (sessions and reports).
#
# perftool need not be installed: its entry points are written beside the wheels that may lie in .whl/ for what the
# machine lacks.
set -u -o pipefail

LIMIT_S=${LIMIT_S:-480}
STAGES=${STAGES:-tests plain compare profile trace tune}
OUT=${OUT:-build/gpu-check}
DRY=${DRY:-}
RESERVE_S=8
TMP=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check-XXXXXX")
SITE=$TMP/site
RES=$TMP/results
mkdir -p "$OUT" "$SITE" "$RES"
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1 COLUMNS=120 PYTHONPATH="$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec > >(tee "$OUT/log.txt") 2>&1
TABLE=$TMP/stages.txt
SMI=
: > "$TABLE"

left_s() { echo $((LIMIT_S - SECONDS - RESERVE_S)); }
note() { printf '%-24s %5s s  %s\n' "$1" "$2" "$3" | tee -a "$TABLE"; }
wants() { case " $STAGES " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
pack() { tar -C "$RES" --exclude=tensorboard -czf "$OUT/sessions.tar.gz" .; }
ended() { [ -n "$SMI" ] && kill "$SMI" 2> /dev/null; pack; rm -rf "$TMP"; }
trap ended EXIT

# stage NAME CAP COMMAND...: in the foreground, since what runs in the background ignores the signal of Ctrl-C.
stage() {
  local name=$1 cap=$2 began=$SECONDS code
  shift 2
  [ "$(left_s)" -lt "$cap" ] && cap=$(left_s)
  if [ "$cap" -lt 12 ]; then note "$name" 0 "left out: no time is left"; return 0; fi
  echo
  echo "=================== $name, at most $cap s: $*"
  timeout --foreground --signal=INT --kill-after=12 "$cap" "$@"
  code=$?
  case $code in
    0) note "$name" $((SECONDS - began)) ok ;;
    124 | 130) note "$name" $((SECONDS - began)) "cut at its cap; what was measured until then is kept" ;;
    *) note "$name" $((SECONDS - began)) "FAILED, exit code $code"; FAILED=1 ;;
  esac
  pack  # what is to come back, since the machine may go at any moment
}
FAILED=0

# ------------------------------------------------------------------------------------------------------- environment

if ls .whl/*.whl > /dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" .whl/*.whl
fi
python3 - "$SITE" <<'PY'
import sys, tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

try:
    print("perftool is installed:", distribution("perftool").version)
except PackageNotFoundError:  # scenarios and the pytest plugin are found by entry points
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    folder = Path(sys.argv[1]) / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [one for group, points in groups.items() for one in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    print("entry points written to", folder)
PY
DRY=$DRY python3 - <<'PY' || { echo "perftool cannot be measured with here"; exit 2; }
import os, platform, torch
from perftool.scenario import discover

print("Python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda, "scenarios", len(discover()))
if not os.environ["DRY"] and not torch.cuda.is_available():
    raise SystemExit("there is no CUDA device; DRY=1 tries the stages on a CPU")
PY
if command -v nvidia-smi > /dev/null; then
  nvidia-smi | head -20
  nvidia-smi --query-gpu=timestamp,pstate,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,memory.used \
    --format=csv,nounits -lms 500 > "$OUT/smi.csv" 2> /dev/null &
  SMI=$!
fi
P="python3 -m perftool"
if [ -n "$DRY" ]; then
  M=scenarios.reference:small L=scenarios.reference:small
  MARK="not gpu and not process" TESTS="tests/probes/test_nvml.py"
  OF_MEDIUM="batch_gather=on optimizer_kernel=fused" OF_LARGE="threads=1"
  TRACED="-s batch_gather=on" TUNED="--only batch_gather --only optimizer_kernel"
else
  M=scenarios.reference:medium L=scenarios.reference:large
  MARK=gpu TESTS=$(grep -rl "mark.gpu" tests --include='test_*.py')
  # The first two are the baseline's own program: what they seem to gain is what measuring adds.
  OF_MEDIUM="amp=off cuda_graphs=off cuda_graphs=on cuda_graphs=on,optimizer_kernel=fused,pinned_memory=on \
    device_resident_data=on,cuda_graphs=on,optimizer_kernel=fused compiled_step=1"
  OF_LARGE="amp=bf16 amp=bf16,batch_gather=on,pinned_memory=on amp=bf16,batch_gather=on,pinned_memory=prefetch \
    amp=bf16,device_resident_data=on,optimizer_kernel=fused"
  TRACED="-s cuda_graphs=on -s batch_gather=on"
  TUNED="--only amp --only device_resident_data --only cuda_graphs --only optimizer_kernel --only compiled_step"
fi
note environment "$SECONDS" ok

# ------------------------------------------------------------------------------------------------------------- stages

if wants tests; then
  # On a GPU torch has warnings of its own, and Python 3.12 warns of each fork: told at the end, and no errors here.
  # shellcheck disable=SC2086
  stage "tests" 100 python3 -m pytest -m "$MARK" -n 8 -W default -p no:cacheprovider --timeout 90 -q $TESTS
  $P machine --json > "$OUT/machine.json"
  $P scenarios --workload $L --json > "$RES/scenarios-large.json"
fi
wants plain && stage "plain PyTorch" 80 python3 benchmarks/gpu/plain.py "$OUT/plain.json" 70
# shellcheck disable=SC2086
{
  wants compare && stage "compare, medium" 105 $P compare $M $OF_MEDIUM --budget 10 --out "$RES" --quiet
  wants compare && stage "compare, large" 78 $P compare $L $OF_LARGE --budget 10 --out "$RES" --quiet
  wants profile && stage "profile, large" 62 $P profile $L --budget 6 --out "$RES" --quiet
  wants trace && stage "trace, medium" 25 $P trace $M $TRACED --steps 20 --budget 4 --out "$RES" --quiet
  wants tune && stage "tune, medium" 100 $P tune $M $TUNED --budget 20 --out "$RES" --quiet
  wants tune && stage "tune, large" 100 $P tune $L $TUNED --budget 20 --out "$RES" --quiet
}

echo
echo "=================== $SECONDS s in all"
cat "$TABLE"
exit $FAILED
