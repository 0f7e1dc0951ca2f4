#!/bin/sh
# Test an image in seconds, without a GPU or a network, and without writing files.
set -e
qlora-repeat --version
/opt/kit/bin/python -c "
import accelerate, bitsandbytes, click, datasets, jinja2, matplotlib, peft, tabulate, torch, transformers
print('torch', torch.__version__)
"
! command -v cc gcc g++ >/dev/null || { echo 'a compiler is in the image'; exit 1; }
qlora-repeat show pocket
