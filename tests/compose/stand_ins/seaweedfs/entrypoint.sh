#!/bin/sh
# `mini -dir=FOLDER ...`: an S3 server on port 8333 with the keys of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
set -eu
[ "$1" = mini ]
for option; do case $option in -dir=*) folder=${option#-dir=} ;; esac; done
chown -R seaweed:seaweed "$folder"
export RCLONE_AUTH_KEY="\"$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY\"" HOME=/tmp
exec setpriv --reuid=seaweed --regid=seaweed --clear-groups \
    rclone serve s3 --config '' --addr 0.0.0.0:8333 "$folder"
