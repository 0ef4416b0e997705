"""The words of docs/benchmarks.md: how each figure came about, and what it does not show."""

from __future__ import annotations

INTRO = """
# Benchmarks

This page compares onecopy with etcd, Redis and others on one machine. It is written by
`python -m bench report` from the results in `bench/results`; do not edit it. Measure on your own
machine with `make bench` (15 minutes), or one benchmark by name: see `bench/README.md`.
"""

GENERATOR = """
## How it is measured

- All servers and the load generator share one machine and its loopback. So throughput is what that
  machine's cores give to servers *and* clients together; compare systems within one run, not with
  figures from elsewhere.
- onecopy's nodes have the environment that `onecopy up` and the files of `deploy/` give them
  (`PYTHONMALLOC`, `GLIBC_TUNABLES`: memory in huge pages), unless the benchmark's own has another;
  results of before 28 November 2026, 21:40 UTC, are without.
- **Closed loop** (unless it says otherwise): each connection sends its next request when the reply
  has come; nothing is pipelined. **Open loop**: requests are due at fixed times (in steps of 1 ms),
  and latency counts from when a request was due, so that a stall shows in every request that it held
  up. Histograms are HDR, three significant digits.
- Requests are rendered before the measurement (conditional writes and new keys get a number when
  they are sent); replies are checked for status and length; what fails is counted by kind, and is in
  no histogram. Clients talk to the primary or leader unless it says otherwise, for every system.
- **Ceiling**: what the generator reaches against a bare aiohttp server that stores nothing, with 64
  connections. A figure near it says more about the client than about the server. In the headline the
  same server is loaded in the same rounds, and the generator's own share of a core is beside each.
- **CPU us/op**: user and system time of all processes of the system under load, from
  `/proc/PID/stat`. **Disk B/op**: what was written to the block device that holds the data, by the
  device's own counter, all nodes together (they share it). **Wire B/op**: what the loopback
  interface received: every byte between clients, servers and nodes, TCP/IP headers and bare
  acknowledgements included, and whatever else uses loopback at that time.
- Headline and failover interleave the systems round by round; ratios are taken within a round, then
  the median over rounds. All systems stay up during all rounds; the idle ones cost their heartbeats.
- etcd's gateway and gRPC are the same cluster. Over gRPC the load comes from a Go program with etcd's
  own client (`bench/go/etcdload`), one gRPC connection for each of up to 64 clients, because a Python
  client would be the bottleneck.
"""

TITLES = {
    "headline": "Headline",
    "failover": "Failover",
    "handover": "Handover",
    "matrix": "Workloads",
    "sizes": "Reads at backups, large values, ranges",
    "confirmed": "Confirmed reads",
    "watch": "Watchers",
    "leases": "Client leases",
    "lease-kill": "Leases, locks and watchers when the primary is killed",
    "coordination": "Transactions, watches, leases and locks beside etcd",
    "gateway": "etcd's HTTP/JSON gateway",
    "patroni": "PostgreSQL with Patroni",
    "detector": "Failure detector",
    "early-ack": "Early acknowledgement",
    "backups": "Number of replicas",
    "blocking": "The cost model of primary-backup",
    "catch-up": "Catch-up",
    "snapshot": "Snapshot to a new backup",
    "backup": "Backup and restore",
    "keys": "Size of the state",
    "memory": "Memory over time",
    "cores": "What a core carries",
    "groups": "Replica groups",
    "security": "What TLS and tokens cost",
    "unordered": "Every request to every replica, without an order",
}

NOTES = {
    "headline": (
        "100 B values, 1,000 keys, three nodes each, medians over the rounds. onecopy and Redis wait for "
        "three disks, etcd and NATS for the two that are quicker: where other programs use the machine "
        "too (see the load average below the tables), the slowest of three decides more than it does alone."
    ),
    "failover": (
        "A client tries a new key every 5 ms, at each node in turn, with a deadline of 1 s a try and "
        "none waiting for another; the gap is the longest time between two acknowledged writes around "
        "the kill. onecopy and etcd run with their default settings; Sentinel with "
        "`down-after-milliseconds 1000` (its default is 30 s), and Redis's tries wait for one replica "
        "(`WAIT 1`), because only one is left."
    ),
    "handover": (
        "A client tries a write every 2 ms, at each node in turn, beside a closed-loop load on all "
        "nodes. The pause is the longest time between two acknowledged writes around a handover."
    ),
    "matrix": (
        "Each dimension varied by itself around 100 B, 64 connections, three replicas, `ack=all`. "
        "PySyncObj is the library's dictionary behind aiohttp with its default periods, journal on; "
        "its reads are the leader's own copy. 'Backups' of etcd are its followers; its stale reads "
        "are `serializable`."
    ),
    "detector": (
        "The heartbeat interval with all other periods in the defaults' proportions to it. Kill -9, "
        "SIGSTOP and a silent cut of the primary from the other nodes (on both of their channels): "
        "longest time without a write. Stalls: the primary is stopped for d ms "
        "and continued; a failover then is a false one. Short periods cost needless failovers, never "
        "correctness: the last columns count acknowledged writes that are gone, log positions that two "
        "acknowledged writes share (two primaries at once), and whether the replicas differ afterwards."
    ),
    "early-ack": (
        "`ack=local` answers before the backups have it. Nodes are d ms apart (a relay delays every "
        "chunk on the data path); the primary is killed under 64 writers, and what its network had "
        "under way dies with it. Then the new primary is asked for every acknowledged key."
    ),
    "backups": "100 B writes; an even number of replicas has a witness beside it.",
    "blocking": (
        "Blocking time: from a request's arrival to its answer, less its execution. Here: one client's "
        "write on three replicas less the same on one, which executes and flushes but asks nobody. "
        "While a backup is removed: a client tries every 2 ms; the longest time between two "
        "acknowledged writes. Failover times stand above, by detector setting under 'Failure detector'."
    ),
    "catch-up": (
        "A backup is killed, falls behind by so many writes of 1 KiB over a state of 20 MiB, and "
        "comes back. 'log' keeps enough log for all of it, 'snapshot' hardly any. The times from the "
        "start of the process contain Python's start; the picture counts from the first answer."
    ),
    "snapshot": (
        "Values of 64 KiB. The backup's log is of no use, so it gets the whole state; beside it, the "
        "primary's store file copied and fsynced on the same disk. The copy is read from the page "
        "cache, as the snapshot is."
    ),
    "cores": (
        "The primary of three nodes on one core, the backups and the generator on the other. The "
        "figures, and what follows from them, are in "
        "[performance](performance.md#what-a-core-carries-and-what-a-second-group-adds)."
    ),
    "groups": (
        "Groups of three nodes, each with a generator of its own, pinned to a core or free: medians "
        "of requests a second, all groups together."
    ),
    "backup": (
        "The load writes 100 B to other keys than those of the state. The table: a backup of random "
        "values, restored and copied in turn, medians. Times are of whole commands, the start of "
        "Python included. The restore reads the store back from the disk and compares its digest, "
        "`cp` compares nothing."
    ),
    "keys": (
        "100 B values. Memory is the primary's: 'resident' contains the part of the store's file that "
        "is mapped and cached, which the kernel takes back when it needs it; 'anonymous' does not."
    ),
    "sizes": (
        "Three replicas, 64 connections, each pair in turn within a round; ratios are taken within a "
        "round, then the median over rounds. Reads are of 100 B, linearizable; at both backups the "
        "connections are spread over them. `cp` and fsync write a file of 64 MiB from memory, in units "
        "of 64 KiB: once, and three at once, because three replicas write three logs to the same disk. "
        "A range is 10,000 keys of 1 KiB, read by one client in pages and decoded."
    ),
    "confirmed": (
        "100 B values, three replicas. A confirmed read waits until every replica in sync has answered "
        "a heartbeat that left after it began; all that wait share it. At a backup the question to the "
        "primary is shared as well."
    ),
    "watch": (
        "Three replicas, watchers at the primary, each on a connection of its own, in one process beside "
        "the nodes. 'Seen' counts from before a write is sent until a watcher has its event, over all "
        "watchers of all writes. Writes: closed loop, 16 connections; rounds with and without watchers "
        "take turns."
    ),
    "leases": (
        "Three replicas, asked at the primary. Ending: leases with a key each, all kept alive at the "
        "same moment and then no more; a write every 2 ms meanwhile. 'Longest gap' is the longest time "
        "between two acknowledged writes, and beside it that of the seconds before. CPU of an ended "
        "lease: the primary's, less what it used a second before."
    ),
    "lease-kill": (
        "Three replicas. Watchers, and those who wait for locks, are spread over all nodes; after the "
        "kill those of the dead node go to another, and the locks are released one after the other. "
        "The leases are kept alive once more right before the kill, and no more."
    ),
    "coordination": (
        "Three nodes each, medians over the rounds, systems in turn; the leader or primary is asked. "
        "Ratios are onecopy's rate by the other's, or, of hand-overs and watchers, onecopy's median time "
        "by the other's: there less than 1 is better. A transaction writes two keys of 100 B if the first "
        "one exists. A keep-alive names one lease (onecopy's can name up to 1,000); etcd's, over gRPC, "
        "goes over a stream of each client's own. Hand-over: from before a holder sends its release until "
        "the next one has the lock, contenders that release it at once and queue again, each with a "
        "connection and a lease of its own; over the gateway by etcd's lock service, over gRPC by the "
        "mutex of its Go client. Watchers have a connection each; the time counts from before the write "
        "is sent, over all watchers of all writes. Clients of onecopy and of the gateway are Python "
        "processes, those of gRPC a Go program."
    ),
    "gateway": (
        "Three nodes each, in turn, medians over the rounds; the leader or primary is asked, both in "
        "etcd's JSON. Ratios are onecopy's rate by etcd's, or, of watchers, onecopy's median time by "
        "etcd's: there less than 1 is better. Watchers have a connection each; the time counts from "
        "before the put is sent, on a connection of its own, over all watchers of all puts."
    ),
    "patroni": (
        "Two PostgreSQLs under Patroni in synchronous mode (ttl 20 s), whose state two data nodes and a "
        "witness keep, or three nodes of etcd; a writer at each PostgreSQL. Faults in an order drawn from "
        "a seed; every link between the machines is a proxy of toxiproxy's, and cuts are black holes and "
        "refused connections in turn. A node of etcd that is cut off is stopped (SIGSTOP) instead. "
        "The time is the longest between two acknowledged commits of either PostgreSQL; most of the "
        "longer ones is Patroni's ttl. After each fault, and at the end, every acknowledged commit is "
        "looked for at the leader."
    ),
    "memory": "Open loop at half of the closed loop's rate, on 10,000 keys.",
    "security": (
        "Clusters of three replicas: plain, with TLS on every link, and with access control, where each "
        "request shows the token of a role. Measured in turn, round after round; the share is the median "
        "of the rounds'. The client's own TLS costs CPU of the same machine, and counts in its rate."
    ),
    "unordered": (
        "The naive way: the client sends each write to three replicas over UDP; they apply what arrives "
        "as it arrives. The sender loses messages and delays each by up to 5 ms, so that they overtake "
        "each other. Resending mends the loss, not the order. onecopy gets the same writes from as many "
        "writers, at all nodes, with the same delays between its nodes and each lost segment late by "
        "TCP's 200 ms (as the kernel would show it)."
    ),
}

MODEL = """
Budhiraja, Marzullo, Schneider and Toueg ("Optimal Primary-Backup Protocols", 1992) prove lower bounds
for the degree of replication, the blocking time and the failover time of such a service, for several
models of failure. Their table is left out here: it could not be checked against the paper when this
was written. What onecopy's own rules say, for crashes and for messages lost or late without a bound:
f crashes need f + 1 data replicas, and 2f + 1 nodes in all with the witnesses, for a majority of the
voters; with nothing failing a write blocks for one round trip and the slowest flush of the in-sync
set; a failover takes the grace period, the stagger, and one agreed change of the view.
"""
