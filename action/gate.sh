#!/usr/bin/env bash
# Compare the runs with a baseline. Reads LOADGEN_* and writes the status to $GITHUB_OUTPUT.
set -euo pipefail

lines() { printf '%s\n' "$1" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//; /^$/d'; }
mapfile -t gates < <(lines "$LOADGEN_GATES")
mapfile -t allowed < <(lines "$LOADGEN_ALLOW")
options=()
for gate in "${gates[@]}"; do options+=(--fail-if "$gate"); done
for objection in "${allowed[@]}"; do options+=(--allow "$objection"); done
[ "$LOADGEN_CONFIDENT" != true ] || options+=(--confident)

rm -f "$LOADGEN_OUT/gates.xml" "$LOADGEN_OUT/gates.md"
status=0
loadgen compare "${options[@]}" --junit "$LOADGEN_OUT/gates.xml" --markdown "$LOADGEN_OUT/gates.md" \
    -- "$LOADGEN_BASELINE" "$LOADGEN_RUNS" || status=$?
[ ! -e "$LOADGEN_OUT/gates.md" ] || cat "$LOADGEN_OUT/gates.md" >> "${GITHUB_STEP_SUMMARY:-/dev/null}"
echo "status=$status" >> "${GITHUB_OUTPUT:-/dev/null}"
exit "$status"
