#!/bin/sh
# Three small real tasks are tuned in passes that they share, on one backbone; then one batch is answered by all three.
set -eu
examples=$(cd "$(dirname "$0")" && pwd)

python "$examples/demo_data.py" demo
graftwork tune-many "$examples/demo.yaml" --output demo/adapters --overwrite
echo
python "$examples/mixed_batch.py" demo/adapters
