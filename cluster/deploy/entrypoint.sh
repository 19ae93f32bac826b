#!/bin/sh
# `docker run IMAGE run condu.yaml` is `condu run condu.yaml`; other programs (`ray start …`, `bash`) run as they are.
# `serve` is condu's: Ray Serve's own command of that name is /opt/venv/bin/serve.
set -eu
case "${1:-}" in
  "" | -* | demo | run | add-task | import-task | fuse | export | versions | compare | status | serve | token | predict | data | drift | doctor)
    exec condu "$@" ;;
esac
exec "$@"
