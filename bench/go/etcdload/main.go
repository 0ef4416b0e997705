// etcdload loads an etcd cluster through its own Go client (gRPC), in a closed loop, and prints one
// line of JSON: what bench/generator.py measures over HTTP, with the same meaning.
//
//	etcdload -endpoint 127.0.0.1:2379 -operation put|get -connections 64 -seconds 3 ...
//
// Each "connection" is one goroutine with one request under way, on a gRPC connection of its own up
// to -clients of them (shared evenly beyond, as etcd's own benchmark tool does).
package main

import (
	"bufio"
	"context"
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
)

type outcome struct {
	Seconds    float64        `json:"seconds"`
	Operations int64          `json:"operations"`
	Errors     map[string]int `json:"errors"`
	Hdr        string         `json:"hdr"`
	CPUSeconds float64        `json:"cpu_s"`
}

func cpuSeconds() float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(used.Utime) + seconds(used.Stime)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "etcdload:", err)
	os.Exit(1)
}

func main() {
	endpoint := flag.String("endpoint", "127.0.0.1:2379", "host:port of the member to ask")
	operation := flag.String("operation", "put", "put or get (linearizable)")
	connections := flag.Int("connections", 64, "requests under way")
	clients := flag.Int("clients", 64, "gRPC connections at most")
	warmUp := flag.Float64("warm-up", 0.5, "seconds before the measurement")
	seconds := flag.Float64("seconds", 3, "seconds of the measurement")
	size := flag.Int("value-bytes", 100, "bytes of a value")
	keys := flag.Int("keys", 1000, "how many keys")
	prefix := flag.String("prefix", "b", "what keys begin with")
	flag.Parse()

	pool := make([]*clientv3.Client, min(*clients, *connections))
	for i := range pool {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{*endpoint}, DialTimeout: 5 * time.Second,
		})
		if err != nil {
			fatal(err)
		}
		defer client.Close()
		pool[i] = client
	}
	raw := make([]byte, *size)
	rand.New(rand.NewSource(1)).Read(raw)
	value := base64.StdEncoding.EncodeToString(raw)[:*size]
	names := make([]string, *keys)
	for i := range names {
		names[i] = fmt.Sprintf("%s%09d", *prefix, i)
	}
	once := func(client *clientv3.Client, name string) string {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if *operation == "put" {
			if _, err := client.Put(ctx, name, value); err != nil {
				return err.Error()
			}
			return ""
		}
		reply, err := client.Get(ctx, name)
		if err != nil {
			return err.Error()
		}
		if len(reply.Kvs) != 1 || len(reply.Kvs[0].Value) != *size {
			return "wrong length"
		}
		return ""
	}
	for _, client := range pool { // the connections are open before the clock runs
		once(client, names[0])
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		fatal(err)
	}

	measure := time.Now().Add(time.Duration(*warmUp * float64(time.Second)))
	end := measure.Add(time.Duration(*seconds * float64(time.Second)))
	total := hdr.New(1, 60_000_000, 3)
	errors := map[string]int{}
	var lock sync.Mutex
	var group sync.WaitGroup
	var cpuStart float64
	time.AfterFunc(time.Until(measure), func() { lock.Lock(); cpuStart = cpuSeconds(); lock.Unlock() })
	for i := 0; i < *connections; i++ {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			draw := rand.New(rand.NewSource(int64(number)))
			own := hdr.New(1, 60_000_000, 3)
			failed := map[string]int{}
			client := pool[number%len(pool)]
			for {
				start := time.Now()
				if !start.Before(end) {
					break
				}
				problem := once(client, names[draw.Intn(len(names))])
				finished := time.Now()
				if finished.Before(measure) || !finished.Before(end) {
					continue
				}
				if problem != "" {
					failed[problem]++
				} else if err := own.RecordValue(max(1, finished.Sub(start).Microseconds())); err != nil {
					failed["over a minute"]++
				}
			}
			lock.Lock()
			defer lock.Unlock()
			total.Merge(own)
			for kind, count := range failed {
				errors[kind] += count
			}
		}(i)
	}
	group.Wait()
	encoded, err := total.Encode(hdr.V2CompressedEncodingCookieBase)
	if err != nil {
		fatal(err)
	}
	line, err := json.Marshal(outcome{
		Seconds: *seconds, Operations: total.TotalCount(), Errors: errors,
		Hdr: string(encoded), CPUSeconds: cpuSeconds() - cpuStart,
	})
	if err != nil {
		fatal(err)
	}
	fmt.Println(string(line))
}
