// etcdload loads an etcd cluster through its own Go client (gRPC) and prints one line of JSON: what
// the bench measures over HTTP, with the same meaning.
//
//	etcdload -endpoint 127.0.0.1:2379 -operation put -connections 64 -seconds 3 ...
//
// put, get, txn and keepalive are closed loops: each "connection" is one goroutine with one request
// under way, on a gRPC connection of its own up to -clients of them (shared evenly beyond, as etcd's
// own benchmark tool does). lock and watch measure other times: see their files.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"sync"
	"syscall"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const longestMicroseconds = 60_000_000

type outcome struct {
	Seconds    float64        `json:"seconds"`
	Operations int64          `json:"operations"`
	Errors     map[string]int `json:"errors"`
	Hdr        string         `json:"hdr"`
	CPUSeconds float64        `json:"cpu_s"`
}

// results is what all goroutines have measured.
type results struct {
	lock     sync.Mutex
	times    *hdr.Histogram
	errors   map[string]int
	cpuStart float64
}

func newResults() *results {
	return &results{times: newHistogram(), errors: map[string]int{}}
}

func newHistogram() *hdr.Histogram { return hdr.New(1, longestMicroseconds, 3) }

func (r *results) add(times *hdr.Histogram, errors map[string]int) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.times.Merge(times)
	for kind, count := range errors {
		r.errors[kind] += count
	}
}

func (r *results) print(seconds float64) {
	encoded, err := r.times.Encode(hdr.V2CompressedEncodingCookieBase)
	check(err)
	line, err := json.Marshal(outcome{
		Seconds: seconds, Operations: r.times.TotalCount(), Errors: r.errors,
		Hdr: string(encoded), CPUSeconds: cpuSeconds() - r.cpuStart,
	})
	check(err)
	fmt.Println(string(line))
}

// record counts a time, and what cannot be counted as an error.
func record(times *hdr.Histogram, errors map[string]int, taken time.Duration) {
	if err := times.RecordValue(max(1, taken.Microseconds())); err != nil {
		errors["over a minute"]++
	}
}

func cpuSeconds() float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(used.Utime) + seconds(used.Stime)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcdload:", err)
		os.Exit(1)
	}
}

// ready tells the bench that the clock may run, and waits for its word.
func ready() {
	fmt.Println("ready")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	check(err)
}

type options struct {
	endpoint    string
	operation   string
	connections int
	clients     int
	warmUp      float64
	seconds     float64
	size        int
	keys        int
	prefix      string
	writes      int
}

func (o options) key(number int) string { return fmt.Sprintf("%s%09d", o.prefix, number) }

func (o options) value() string {
	raw := make([]byte, o.size)
	rand.New(rand.NewSource(1)).Read(raw)
	return base64.StdEncoding.EncodeToString(raw)[:o.size]
}

func (o options) connect(count int) []*clientv3.Client {
	pool := make([]*clientv3.Client, count)
	for i := range pool {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{o.endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		})
		check(err)
		pool[i] = client
	}
	return pool
}

func main() {
	var o options
	flag.StringVar(&o.endpoint, "endpoint", "127.0.0.1:2379", "host:port of the member to ask")
	flag.StringVar(&o.operation, "operation", "put", "put, get (linearizable), txn, keepalive, lock, watch")
	flag.IntVar(&o.connections, "connections", 64, "requests under way; contenders; watchers")
	flag.IntVar(&o.clients, "clients", 64, "gRPC connections at most, of closed loops")
	flag.Float64Var(&o.warmUp, "warm-up", 0.5, "seconds before the measurement")
	flag.Float64Var(&o.seconds, "seconds", 3, "seconds of the measurement")
	flag.IntVar(&o.size, "value-bytes", 100, "bytes of a value")
	flag.IntVar(&o.keys, "keys", 1000, "how many keys")
	flag.StringVar(&o.prefix, "prefix", "b", "what keys begin with")
	flag.IntVar(&o.writes, "writes", 50, "how many writes the watchers see")
	flag.Parse()
	switch o.operation {
	case "lock":
		handOver(o)
	case "watch":
		watch(o)
	default:
		closedLoop(o)
	}
}
