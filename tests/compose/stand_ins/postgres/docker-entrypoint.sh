#!/bin/sh
# Makes the cluster, its one user and its database at the first start, then becomes the server.
set -eu
if ! [ -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    printf '%s' "$POSTGRES_PASSWORD" >/tmp/password
    initdb -D "$PGDATA" -U "$POSTGRES_USER" -E UTF8 --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C \
        --auth=scram-sha-256 --pwfile=/tmp/password --no-instructions --no-sync >/dev/null
    rm /tmp/password
    printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    printf 'CREATE DATABASE %s\n' "$POSTGRES_DB" | postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec "$@" -c listen_addresses='*'
