# `make help` prints the targets. Each installs what it lacks, on a Debian machine with Rust, as root or with sudo.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

cargo ?= cargo
cluster := tests/cluster/cluster
# The cluster needs root. With sudo it keeps HOME, so that its caches stay where they are.
root := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env env "PATH=$$PATH" "HOME=$$HOME")
# Images of the end-to-end tests: name, Debian suite, packages.
postgres := postgres bookworm postgresql-15 python3-psycopg2
mariadb := mariadb bookworm mariadb-server-core mariadb-client-core python3-pymysql
# Further ones of the suite of templates; some are completed by tests/cluster/images.
template-images := redis valkey sqlite etcd mysql mariadb-trixie postgres-trixie rabbitmq cassandra mongodb db2-look-alike sqlserver-look-alike postgres-14 postgres-18 clickhouse influxdb
image-redis := trixie redis-server redis-tools python3
image-valkey := trixie valkey-server valkey-tools python3
image-sqlite := bookworm sqlite3 python3
image-etcd := trixie etcd-server etcd-client python3
image-mysql := sid mysql-server-core mysql-client-core python3 python3-pymysql
image-mariadb-trixie := trixie mariadb-server-core mariadb-client-core python3-pymysql
image-postgres-trixie := trixie postgresql-17 python3-psycopg2
image-postgres-14 := trixie postgresql-client-17 python3-psycopg2
image-postgres-18 := trixie postgresql-client-17 python3-psycopg2
image-rabbitmq := trixie rabbitmq-server python3
image-cassandra := bookworm openjdk-17-jre-headless python3-cassandra
image-mongodb := trixie nodejs python3
image-db2-look-alike := bookworm python3 procps
image-sqlserver-look-alike := bookworm python3
image-clickhouse := bookworm clickhouse-server clickhouse-client python3
image-influxdb := bookworm influxdb python3

# Which cases `make e2e` runs with the controller in the cluster as well: words of their names.
in-cluster ?= in-cluster crds story
# Which faults, which scenarios, which templates: words of their names; all without.
faults ?=
templates ?=
bench ?=
cases ?=

# Debian's Prometheus and Alertmanager, unpacked instead of installed: the packages would start services. It needs no root.
define unpack-prometheus
tools=$$(realpath -m "$${CARGO_TARGET_DIR:-target}/prometheus")
for package in prometheus prometheus-alertmanager; do
  [ ! -x "$$tools/usr/bin/$$package" ] || continue
  mkdir -p "$$tools"
  (cd "$$tools" && { apt-get download -q $$package || { $(root) apt-get update -qq && apt-get download -q $$package; }; })
  dpkg-deb -x "$$tools"/$${package}_*.deb "$$tools"
done
endef

define check-rules
$(unpack-prometheus)
"$$tools/usr/bin/promtool" check rules dashboards/rules/*.yaml
"$$tools/usr/bin/promtool" test rules dashboards/rules/tests/*.yaml
endef

run-demo = $(cargo) run --locked -p stillpoint --features demo -- demo

define start-cluster
$(root) $(cluster) up
$(root) $(cluster) debian-image $(postgres)
$(root) $(cluster) debian-image $(mariadb)
endef

define newline


endef
# Those of `images`: all, unless told.
images ?= $(template-images)
define import-templates
$(foreach name,$(images),$(root) $(cluster) debian-image $(name) $(image-$(name))$(newline))
endef
# The static binary of the image: the target with musl brings its own C library; `ring` has C to compile as well.
static-target = $(shell uname -m)-unknown-linux-musl
define static-binary
command -v musl-gcc >/dev/null || { $(root) apt-get update -qq && $(root) apt-get install -y -qq --no-install-recommends musl-tools binutils; }
command -v rustup >/dev/null && rustup target add --toolchain "$$(rustup show active-toolchain | cut -d' ' -f1)" $(static-target) 2>/dev/null
$(cargo) build --locked -p stillpoint --target $(static-target) --profile $(profile)
image=$$(realpath -m "$${CARGO_TARGET_DIR:-target}/image")
built=$$(realpath -m "$${CARGO_TARGET_DIR:-target}/$(static-target)/$(patsubst dev,debug,$(profile))/stillpoint")
mkdir -p "$$image"
# Line tables are of no use to anybody in an image.
strip -o "$$image/stillpoint" "$$built"
! readelf -d "$$image/stillpoint" | grep -q NEEDED || { echo "$$built needs shared libraries" >&2; exit 1; }
echo "$$image/stillpoint: $$(stat -c %s "$$image/stillpoint" | numfmt --to=iec-i --suffix=B), static"
endef

# Whoever's it is: `down` also removes what is one per machine (the bridge, /run/stillpoint-cluster, NAT rules), so it may only
# follow an `up` on a machine that had no cluster.
cluster-exists := { [ -e /run/stillpoint-cluster ] || [ -d "$${STILLPOINT_CLUSTER_HOME:-$$HOME/.cache/stillpoint/cluster}/state" ]; }

.PHONY: help setup build image test rules fuzz soak mutations demo demo-test demo-cluster cluster e2e e2e-incluster e2e-faults e2e-templates bench-freeze bench-scale lint clean

help: ## These lines
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

setup: ## Install what building and testing take: a C compiler (rustc links with it, `ring` has C in it), shells; checks for Rust
	@missing=()
	command -v cc >/dev/null || missing+=(gcc libc6-dev)
	[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
	# The holder is tested in every shell that containers have.
	for shell in dash bash; do command -v $$shell >/dev/null || missing+=($$shell); done
	command -v busybox >/dev/null || missing+=(busybox-static)
	if [ $${#missing[@]} -gt 0 ]; then
	  echo "installing $${missing[*]}"
	  $(root) apt-get update -qq
	  $(root) apt-get install -y -qq --no-install-recommends "$${missing[@]}"
	fi
	if ! command -v $(cargo) >/dev/null; then
	  echo "Rust is missing: install rustup (https://rustup.rs); it takes the version from rust-toolchain.toml" >&2
	  exit 1
	fi

build: setup ## Build the binary for development: target/debug/stillpoint
	$(cargo) build --locked -p stillpoint

# The release profile, or with `make image profile=dev` one that is compiled within two minutes.
profile ?= release
image: setup ## The static binary for the image, in target/image; then docker build -f deploy/Containerfile target/image
	@$(static-binary)

test: setup ## Format, lints, and all tests that need no cluster
	$(cargo) fmt --all --check
	$(cargo) clippy --locked --workspace --all-targets -- -D warnings
	$(cargo) clippy --locked -p stillpoint-e2e --test e2e --test faults --test templates --test bench -- -D warnings
	$(cargo) test --locked --workspace --no-fail-fast
	$(check-rules)

rules: ## Check the Prometheus rules, and that every alert fires and keeps silent in the cases of dashboards/rules/tests
	@$(check-rules)

fuzz: setup ## The parser of schedules against random bytes for DURATION seconds (default 60); installs nightly Rust and cargo-fuzz where they are missing
	@rustup run nightly rustc --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
	command -v cargo-fuzz >/dev/null || rustup run nightly cargo install --locked cargo-fuzz
	cd crates/scheduler && rustup run nightly cargo fuzz run expression -- -max_total_time=$${DURATION:-60}

soak: setup ## The fault simulation over SEEDS seeds (default 1000000) on all cores; FIRST=n begins elsewhere
	$(cargo) run --locked --profile soak -p stillpoint-executor --features simulation --example soak -- --seeds $${SEEDS:-1000000} --first $${FIRST:-0}

mutations: setup ## What the fault simulation notices when it is left out, and after how many seeds
	$(cargo) run --locked --profile soak -p stillpoint-executor --features simulation --example soak -- --mutations

demo-test: setup ## The demo, and that nothing is left of it however it ends
	$(cargo) clippy --locked -p stillpoint --features demo --all-targets -- -D warnings
	$(run-demo)
	$(cargo) test --locked -p stillpoint --features demo --test demo -- --ignored --test-threads 1

demo: setup ## Protect a real PostgreSQL on the embedded cluster, and restore it
	$(run-demo)

demo-cluster: cluster ## The same story on the real cluster, told at its end by `backup describe`
	@$(cargo) build --locked -p stillpoint
	$(root) $(cargo) test --locked -p stillpoint-e2e --test e2e -- story
	cat $${CARGO_TARGET_DIR:-target}/e2e/describe-*.txt

cluster: setup ## Start the real single-node Kubernetes and import its images; `tests/cluster/cluster down` ends it
	$(start-cluster)

# A cluster that was up before stays up. There is no $$(MAKE) in here: with .ONESHELL `make -n` would run all of it.
e2e: profile = dev
# Of the templates the rows that are marked `short`; `make e2e-templates` has all.
e2e: images = redis sqlite
e2e: setup ## End-to-end tests on the real cluster; one that it started is ended, unless KEEP=1
	@$(cargo) build --locked -p stillpoint
	$(static-binary)
	$(cargo) test --locked --no-run -p stillpoint-e2e --test e2e --test faults --test templates
	$(cargo) test --locked --no-run -p stillpoint-api --test server
	$(unpack-prometheus)
	if ! $(cluster-exists) && [ -z "$${KEEP:-}" ]; then trap '$(root) $(cluster) down' EXIT; fi
	$(start-cluster)
	eval "$$($(root) $(cluster) env)"
	failed=0
	$(root) env KUBECONFIG="$$KUBECONFIG" $(cargo) test --locked -p stillpoint-api --test server -- --ignored || failed=1
	$(root) $(cargo) test --locked -p stillpoint-e2e --test e2e || failed=1
	$(root) $(cluster) image stillpoint "$$image" /stillpoint
	$(root) env CONTROLLER=in-cluster $(cargo) test --locked -p stillpoint-e2e --test e2e -- $(in-cluster) || failed=1
	$(root) env KILLS=$${KILLS:-16} SEED=$${SEED:-5} STOP_SECONDS=$${STOP_SECONDS:-20} $(cargo) test --locked -p stillpoint-e2e --test faults -- $(or $(faults),'!stopped') || failed=1
	$(import-templates)
	$(root) $(cargo) test --locked -p stillpoint-e2e --test templates -- short || failed=1
	exit $$failed

e2e-incluster: profile = dev
e2e-incluster: setup ## The end-to-end tests with the controller as the Deployment of deploy/base: cases='WORD…', all without
	@$(cargo) build --locked -p stillpoint
	$(static-binary)
	$(cargo) test --locked --no-run -p stillpoint-e2e --test e2e
	if ! $(cluster-exists) && [ -z "$${KEEP:-}" ]; then trap '$(root) $(cluster) down' EXIT; fi
	$(start-cluster)
	$(root) $(cluster) image stillpoint "$$image" /stillpoint
	$(root) env CONTROLLER=in-cluster $(cargo) test --locked -p stillpoint-e2e --test e2e -- $(cases)

e2e-faults: setup ## Kill every part at random instants around the freeze: KILLS=104, SEED=n repeats; ends a cluster it started
	@$(cargo) build --locked -p stillpoint
	$(cargo) test --locked --no-run -p stillpoint-e2e --test faults
	if ! $(cluster-exists) && [ -z "$${KEEP:-}" ]; then trap '$(root) $(cluster) down' EXIT; fi
	$(start-cluster)
	$(root) $(cargo) test --locked -p stillpoint-e2e --test faults -- $(faults)

e2e-templates: setup ## Every template in pods of the real cluster: templates='redis disk', images='redis' makes fewer; ends a cluster it started
	@$(cargo) build --locked -p stillpoint
	$(cargo) test --locked --no-run -p stillpoint-e2e --test templates
	if ! $(cluster-exists) && [ -z "$${KEEP:-}" ]; then trap '$(root) $(cluster) down' EXIT; fi
	$(start-cluster)
	$(import-templates)
	$(root) $(cargo) test --locked -p stillpoint-e2e --test templates -- $(templates)

bench-freeze: setup ## Figures of the freeze with a release build: RUNS=50 of each scenario; ends a cluster it started
	@$(cargo) build --locked --release -p stillpoint
	$(cargo) test --locked --no-run -p stillpoint-e2e --test bench
	if ! $(cluster-exists) && [ -z "$${KEEP:-}" ]; then trap '$(root) $(cluster) down' EXIT; fi
	$(start-cluster)
	$(root) env STILLPOINT_BIN="$${CARGO_TARGET_DIR:-target}/release/stillpoint" $(cargo) test --locked -p stillpoint-e2e --test bench -- $(bench)

# Two builds, because the embedded API server must not come into the controller by a feature that both share.
bench-scale: setup ## Figures of many policies with a release build: POLICIES='1000 10000 100000' PARTS='herd …'; REAL=2000: and kube-apiserver
	@$(cargo) build --locked --release -p stillpoint
	$(cargo) build --locked --release -p stillpoint-scale
	built=$${CARGO_TARGET_DIR:-target}/release
	if [ -n "$${REAL:-}" ]; then
	  $(root) $(cluster) build
	  eval "$$($(root) $(cluster) env)"
	fi
	STILLPOINT_BIN="$$built/stillpoint" "$$built/stillpoint-scale"

lint: ## Check the scripts and the Go of tests/cluster
	@command -v shellcheck >/dev/null || { $(root) apt-get update -qq && $(root) apt-get install -y -qq --no-install-recommends shellcheck; }
	shellcheck .ci/run
	$(cluster) lint

clean: ## Remove what was built here; the caches of the cluster stay
	$(cargo) clean
