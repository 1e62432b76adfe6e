#!/bin/sh
# Tune an adapter on real film reviews, score the saved folder on the held-out test split, and let it judge three new ones.
set -eu
adapter=${1:-adapters/movie-reviews}

graftwork tune --task movie-reviews --method houlsby --train.num_train_epochs 2 --output "$adapter" --overwrite
echo
echo "The saved adapter, loaded again and scored on the test split:"
graftwork evaluate "$adapter" --split test
echo
echo "What it says of three reviews:"
graftwork predict "$adapter" \
    "A gripping film with a wonderful cast; I laughed and I cried." \
    "Two hours of my life that I will never get back." \
    "The plot is thin, but the performances make it worth seeing."
