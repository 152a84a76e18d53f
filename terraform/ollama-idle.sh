#!/bin/sh
# Powers the VM off once Ollama has had no model in memory for ${idle_min} minutes and nobody is logged in. Ollama drops a
# model five minutes after its last request; one that does not answer counts as idle. Compute Engine runs this at each
# boot, and holds up the boot until it ends.
set -eu
exec systemd-run --unit=goblin-idle --collect sh -c '
idle=0
while sleep 60; do
  case "$(curl --silent --max-time 10 http://127.0.0.1:11434/api/ps)$(who)" in
    "{\"models\":[]}" | "") idle=$((idle + 1)) ;;
    *) idle=0 ;;
  esac
  if [ "$idle" -ge ${idle_min} ]; then exec poweroff; fi
done'
