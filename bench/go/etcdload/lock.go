package main

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
)

// handOver measures from the sending of a holder's release until the next one holds the lock: etcd's
// own Mutex, contenders that take it, release it at once and queue again.
func handOver(o options) {
	pool := o.connect(o.connections)
	mutexes := make([]*concurrency.Mutex, len(pool))
	for i, client := range pool {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(leaseSeconds))
		check(err)
		mutexes[i] = concurrency.NewMutex(session, "/handover")
	}
	ready()
	measure := time.Now().Add(time.Duration(o.warmUp * float64(time.Second)))
	end := measure.Add(time.Duration(o.seconds * float64(time.Second)))
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	found := newResults()
	var lock sync.Mutex // of the two below
	var released time.Time
	times, failed := newHistogram(), map[string]int{}
	var group sync.WaitGroup
	for _, mutex := range mutexes {
		group.Add(1)
		go func() {
			defer group.Done()
			for ctx.Err() == nil {
				if err := mutex.Lock(ctx); err != nil {
					if ctx.Err() == nil {
						lock.Lock()
						failed[err.Error()]++
						lock.Unlock()
					}
					continue
				}
				now := time.Now()
				lock.Lock()
				if !released.IsZero() && now.After(measure) && now.Before(end) {
					record(times, failed, now.Sub(released))
				}
				released = time.Now()
				lock.Unlock()
				if err := mutex.Unlock(context.Background()); err != nil {
					lock.Lock()
					failed[err.Error()]++
					lock.Unlock()
				}
			}
		}()
	}
	group.Wait()
	found.add(times, failed)
	found.print(o.seconds)
}
