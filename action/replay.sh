#!/usr/bin/env bash
# Install loadgen and replay a load. Reads LOADGEN_* and writes runs and status to $GITHUB_OUTPUT.
set -euo pipefail

if [ -n "$LOADGEN_PACKAGE" ]; then package=$LOADGEN_PACKAGE; else package=$(cd "$GITHUB_ACTION_PATH/.." && pwd); fi
[ "$package" = none ] || python3 -m pip install --quiet --disable-pip-version-check "$package"  # none: it is installed

[[ $LOADGEN_OUT != *$'\n'* ]] || { echo "out is one line"; exit 2; }  # more would be outputs of their own
mapfile -t arguments < <(printf '%s\n' "$LOADGEN_ARGUMENTS" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//; /^$/d')
[ -z "$LOADGEN_SERVE" ] || arguments+=(--serve "$LOADGEN_SERVE")
[ -z "$LOADGEN_BASE_URL" ] || arguments+=(--base-url "$LOADGEN_BASE_URL")

rm -f "$LOADGEN_OUT/replay.xml" "$LOADGEN_OUT/replay.md"  # of an earlier job, which are not written where this one is refused
status=0
loadgen replay --out "$LOADGEN_OUT/runs" --overwrite --repeat "$LOADGEN_REPEAT" --seed "$LOADGEN_SEED" \
    --junit "$LOADGEN_OUT/replay.xml" --markdown "$LOADGEN_OUT/replay.md" "${arguments[@]}" -- "$LOADGEN_TRACE" || status=$?
[ ! -e "$LOADGEN_OUT/replay.md" ] || cat "$LOADGEN_OUT/replay.md" >> "${GITHUB_STEP_SUMMARY:-/dev/null}"
{ echo "runs=$LOADGEN_OUT/runs"; echo "status=$status"; } >> "${GITHUB_OUTPUT:-/dev/null}"
exit "$status"
