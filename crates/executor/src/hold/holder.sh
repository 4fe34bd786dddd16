# The holder: two commands as one held process (docs/design/freeze.md §2.2).
#   holder NONCE FREEZE THAW PROBE BARRIER [RENEW LEASE] WORD...
# What is between `renew: begin` and `renew: end` is left out where no command renews, for the script travels in a request.
# the counts of words of the five commands, the lease of a state that ends by itself in hundredths of a second, the words
# stdin: `freeze n SECONDS`, `beat n i`, `thaw n`. stdout: READY, FROZEN, HELD, EVIDENCE, THAWED, THAWFAILED, EXPIRED.
# Two shells hold. The reader (this one) takes lines and answers beats. The keeper, its child, runs the freeze, and
# thaws when it is told to, when the reader's input ends, when the reader is gone, or at the deadline. Either goes on
# alone. POSIX only: no `read -t`, no job control, and nothing that needs a file (a here-document does in some shells).
n=$1 cf=$2 ct=$3 cp=$4 cb=$5
shift 5
# renew: begin
cr=$1 lease=$2
shift 2
# renew: end
k= p= s= idle= asked= ended= wake= late= cut=
# Broken pipes must not end a thaw. Our own stderr is dropped, for shells report each child that they lose; 3 is the
# real one, for the freeze command's words and for ours.
trap '' PIPE
exec 3>&2 2>/dev/null

say() { printf '%s\n' "$*"; }
tell() { say "EVIDENCE $n $1"; }
fail() { say "ERROR: $*" >&3; quit 3; }
# A shell that traps a signal makes its children lose it until they have a trap of their own. So no parent traps what
# its child is sent (reader: TERM, HUP; keeper: USR1, USR2; freeze, timers: TERM), and a sleep is killed.
end() { kill -KILL "$1"; }
nap() { exec sleep "$1" </dev/null >/dev/null 2>&1 3>&-; }
# Where there is setsid a command gets a session of its own, so that a hung one can be killed with its children.
own=$(command -v setsid)
slay() { kill -KILL "-$1" || kill -KILL "$1"; }

# Whether process $1 is no more; one that nobody waited for yet is no more either.
gone() {
    [ -r /proc/self/stat ] || ! kill -0 "$1" || return 1
    [ -r /proc/self/stat ] || return 0
    stat=
    read -r stat <"/proc/$1/stat" || return 0
    stat=${stat##*) }
    case $stat in Z* | X*) return 0 ;; esac
    return 1
}

# One second, or less when a signal wakes it. Where a signal can come, nothing is waited for twice and no status is
# relied on: bash forgets a child whose end coincides with a trapped signal, and then waits for it for ever.
pause() {
    nap 1 &
    s=$!
    [ -n "$wake" ] || wait "$s"
    end "$s"
    s= wake=
}
poke() {
    wake=1
    [ -z "$s" ] || end "$s"
}

# Waits for the end of a process that was told to end: milliseconds, unless the kernel keeps it.
over() {
    i=0
    until gone "$1"; do
        i=$((i + 1))
        [ "$i" -lt 2000 ] || {
            pause
            gone "$1"
            return
        }
    done
}

# Becomes command $1: freeze, thaw, probe, barrier or renew. The others are its neighbours among the words.
run() {
    case $1 in
    freeze) o=0 c=$cf ;;
    thaw) o=$cf c=$ct ;;
    probe) o=$((cf + ct)) c=$cp ;;
    barrier) o=$((cf + ct + cp)) c=$cb ;;
    # renew: begin
    renew) o=$((cf + ct + cp + cb)) c=$cr ;;
    # renew: end
    esac
    shift
    shift "$o"
    i=0
    while [ "$i" -lt "$c" ]; do
        set -- "$@" "$1"
        shift
        i=$((i + 1))
    done
    shift $(($# - c))
    trap - PIPE TERM HUP
    exec $own "$@"
}

# Runs command $2 for at most $1 seconds with its streams on /dev/null; 137 when it took longer. Its status is in r.
bounded() {
    (limit "$@")
    r=$?
    return "$r"
}
# In a subshell, which has no traps.
limit() {
    b=$1
    shift
    (run "$@") </dev/null >/dev/null 2>&1 3>&- &
    c=$!
    (
        stop= x=
        trap 'stop=1; [ -z "$x" ] || end "$x"' TERM
        nap "$b" &
        x=$!
        [ -n "$stop" ] || wait "$x"
        if [ -n "$stop" ]; then end "$x"; else slay "$c"; fi
    ) </dev/null >/dev/null 2>&1 3>&- &
    t=$!
    wait "$c"
    r=$?
    kill "$t"
    return "$r"
}

# 0: the probe says frozen. 1: it says not, or there is none. 2: it cannot say.
probed() {
    [ "$cp" -gt 0 ] || return 1
    bounded 5 probe "$@"
    case $r in
    0) return 0 ;;
    126 | 127 | 137) return 2 ;;
    esac
    return 1
}

# renew: begin
# Hundredths of a second since the machine started, in t. No program is needed, and nobody sets this clock.
clock() {
    read -r t i </proc/uptime
    t=${t%.*}${t#*.}
    t=${t#0}
}
# Renews a state that ends by itself, and fails when it may have ended before: from before the last renewal (or the
# freeze) until after this one it must be less than the lease. Once it may have ended nothing is held any more.
renewed() {
    clock
    f=$t
    bounded 5 renew "$@" || return 1
    clock
    [ $((t - since)) -lt "$lease" ] || {
        tell lapsed=$((t - since))
        late=1
        return 1
    }
    since=$f
}
# renew: end

# What is frozen before we froze it is not ours: it is neither frozen nor thawed.
foreign() {
    probed "$@"
    case $? in
    0)
        tell foreign_freeze=1
        quit 0
        ;;
    2) fail "the probe gave no answer in 5 s" ;;
    esac
}

# The freeze command, the barrier after it where there is one, and their answers. A barrier that failed makes nothing durable
# and is told as such; the freeze stands all the same.
freezing() {
    q= stop=
    trap 'stop=1; [ -z "$q" ] || slay "$q"' TERM
    for w in freeze barrier; do
        (run $w "$@") >&3 2>&3 3>&- &
        q=$!
        [ -z "$stop" ] || slay "$q"
        wait "$q"
        r=$?
        if [ -n "$stop" ]; then
            until over "$q"; do :; done
            exit 1
        fi
        case $w$r in
        freeze0) [ "$cb" = 0 ] || continue ;;
        barrier0) tell barrier=command ;;
        *)
            tell "${w}_failed=$r"
            [ $w = barrier ] || exit $r
            ;;
        esac
        say "FROZEN $n 0 $who"
        exit 0
    done
}

# Ends an unfinished freeze; fails while it is still there.
stopped() {
    [ -n "$p" ] || return 0
    kill -TERM "$p"
    over "$p" || return 1
    p=
}

# Thaws until that succeeds. It counts only when no freeze was left that could come after it.
undo() {
    while :; do
        stopped
        left=$?
        bounded 5 thaw "$@" && [ "$left" -eq 0 ] && return
        if [ -n "$asked" ]; then
            tell "thaw_failed=$r"
            say "THAWFAILED $n"
        fi
        pause
    done
}

keep() {
    trap 'asked=1; poke' USR1
    trap 'ended=1; poke' USR2
    nap "$1" &
    z=$!
    shift
    freezing "$@" &
    p=$!
    why=
    while [ -z "$asked$ended$why" ]; do
        if gone "$z"; then
            why=late
        elif gone $$; then
            why=lost
            exec >/dev/null 3>&-
        elif [ -n "$p" ] && gone "$p"; then
            wait "$p" || why=failed
            p=
        fi
        [ -n "$why" ] || pause
    done
    # From here on the reader says HELD no more.
    kill -TERM $$
    undo "$@"
    if [ "$why" = failed ]; then
        while [ -z "$asked$ended" ] && ! gone "$z" && ! gone $$; do pause; done
    fi
    end "$z"
    if [ "$why" = late ]; then say "EXPIRED $n"; elif [ -n "$asked" ]; then say "THAWED $n"; fi
    [ -z "$asked$ended" ] || exit 0
    # A reader that waits for a line ends at once, one that is stopped is killed.
    kill -HUP $$
    over $$ || kill -KILL $$
    exit 0
}

# Ends a holder that is not told to freeze within 30 s.
expire() {
    trap 'ended=1; poke' TERM
    nap 30 &
    z=$!
    while [ -z "$ended" ] && ! gone "$z" && ! gone $$; do pause; done
    end "$z"
    [ -n "$ended" ] || kill -HUP $$
    exit 0
}

quit() {
    [ -z "$idle" ] || kill "$idle"
    exit "$1"
}

# Has the keeper thaw. A keeper that died did not: then this shell thaws, and claims nothing.
release() {
    trap '' TERM HUP
    kill -CONT "$k"
    kill "-$1" "$k"
    shift
    wait "$k" && exit 0
    asked=
    undo "$@"
    exit 3
}

command -v sleep >/dev/null || fail "no program sleep, so no deadline"
# renew: begin
[ -r /proc/uptime ] || fail "no /proc/uptime, so no lease"
# renew: end
host=
read -r host </proc/sys/kernel/hostname || host=$(hostname)
who="pid=$$ host=${host:-unknown}"
foreign "$@"
expire </dev/null >/dev/null &
idle=$!
trap 'late=1 cut=1' TERM
trap 'quit 3' HUP
say "READY $n $who"
while :; do
    cut=
    if ! read -r word nonce arg; then
        # A signal ends a read as well, in some shells.
        [ -z "$cut" ] || continue
        [ -n "$k" ] || quit 0
        release USR2 "$@"
    fi
    [ "$nonce" = "$n" ] || continue
    case $word in
    freeze)
        case $arg in '' | *[!0-9]*) continue ;; esac
        [ -z "$k" ] || continue
        foreign "$@"
        kill "$idle"
        # renew: begin
        clock
        since=$t
        # renew: end
        keep "$arg" "$@" </dev/null &
        k=$!
        ;;
    beat)
        case $arg in '' | *[!0-9]*) continue ;; esac
        if [ -n "$k" ]; then
            ! gone "$k" || release USR2 "$@"
            [ "$cp" -eq 0 ] || probed "$@" || continue
            # renew: begin
            renewed "$@" || continue
            # renew: end
        fi
        [ -n "$late" ] || say "HELD $n $arg $who"
        ;;
    thaw)
        [ -z "$k" ] || release USR1 "$@"
        say "THAWED $n"
        quit 0
        ;;
    esac
done
