#!/bin/sh
# The client of a database for tests: it is the server too. Statements come one a line and end in `;`:
#   set wait LEASE ACQUIRE;     the lease of the session
#   lock;  unlock;              unlock without a lock is an error, at which the client ends
#   change;  restore;           the file `setting` of the volume gets 0, and what it had when `old_setting=` was said
#   stage N;                    what is written between two cuts: N in the file `stage` of every volume
#   say WORD ... key= ...;      prints the words; a key without a value gets the server's
# The lock is the kernel's, on a file of the volume: it goes with this process, however that ends. While it is held
# the volume says `frozen` in the file `state`, so that a copy tells whether it was made inside the hold.
# The environment may name a second volume (WAL) and a file in which all databases write down what they go through, in one
# order (EVERYBODY).
# Usage: database.sh HOW DIRECTORY HOST; HOW is `faithful` or the name of one way to misbehave.
how=$1 directory=$2 host=$3
conn=$$ lease=0 locked= old=

note() {
    echo "$1" >>"$directory/log"
    if [ -n "$EVERYBODY" ]; then echo "$host $1" >>"$EVERYBODY"; fi
}

lock() {
    exec 9>"$directory/lock"
    flock 9
    locked=yes
    echo frozen >"$directory/state"
    note frozen
}

unlock() {
    if [ -z "$locked" ]; then
        echo "ERROR 4146 (HY000): no stage is held" >&2
        [ "$how" = going-on ] || exit 1
        return
    fi
    note "$1"
    echo open >"$directory/state"
    exec 9>&-
    locked=
}

say() {
    out=
    for word in "$@"; do
        case $word in
        host=) word=host=$host ;;
        conn=) word=conn=$conn ;;
        lease=) word=lease=$lease ;;
        gtid=) word=gtid=0-1-7 ;;
        datadir=) word=datadir=$directory ;;
        old_setting=) read -r old <"$directory/setting" && word=old_setting=$old ;;
        label=) word=label=START%20WAL%0ALABEL ;;
        esac
        out="$out${out:+ }$word"
    done
    echo "$out"
}

babble() {
    yes "INSERT INTO t VALUES ('READY or not');" | head -c 1000000
    echo
    # One line of a megabyte, and words of somebody else's hold.
    head -c 1000000 /dev/zero | tr '\0' x
    echo
    echo "FROZEN aaaaaaaaaaaaaaaaaaaa 0 host=$host conn=1 lease=1 gtid=0-1-7"
    echo "THAWED aaaaaaaaaaaaaaaaaaaa"
}

# Real clusters tell only the first process of a container that its pod is being deleted.
trap '' TERM
note opened
if [ "$how" = wrong-password ]; then
    echo 'psql: error: connection to server on socket "/run/s" failed: FATAL:  password authentication failed for user "x"' >&2
    exit 2
fi
set -f
while read -r line; do
    # shellcheck disable=SC2086 # words are what is wanted
    set -- ${line%;}
    case $how/$1/$2 in
    wrong-lease/say/READY | lost-lease/say/FROZEN) lease=86400 ;;
    another-server/say/FROZEN | another-server-at-the-end/say/HELD) conn=1 ;;
    never-frozen/say/FROZEN) continue ;;
    never-thawed/unlock/)
        cat >/dev/null
        unlock eof
        exit 0
        ;;
    failing-statement/lock/)
        echo "ALTER USER app IDENTIFIED BY 'hunter2'"
        printf '%s\n' "--------------" "ALTER USER app IDENTIFIED BY 'hunter2'" "--------------" "" \
            "ERROR 1064 (42000) at line 4: You have an error in your SQL syntax; check the manual near 'hunter2' at line 1" \
            "LINE 1: ALTER USER app IDENTIFIED BY 'hunter2'" >&2
        exit 1
        ;;
    babbling/say/*) babble ;;
    esac
    case $1 in
    set) lease=$3 ;;
    lock) lock ;;
    unlock) unlock thawed ;;
    change) echo 0 >"$directory/setting" ;;
    restore) echo "$old" >"$directory/setting" ;;
    stage)
        for volume in "$directory" $WAL; do echo "$2" >"$volume/stage"; done
        note "stage $2"
        ;;
    say)
        shift
        say "$@"
        ;;
    esac
    case $how/$1 in
    dying/FROZEN) exit 1 ;;
    esac
done
if [ -n "$locked" ]; then unlock eof; fi
note closed
