package main

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const seenTimeout = 60 * time.Second

// watch measures from before a write is sent until each of the watchers, on connections of their own,
// has its event; one write after the other.
func watch(o options) {
	pool := o.connect(o.connections)
	writer := o.connect(1)[0]
	key := o.prefix + "seen"
	events := make(chan time.Time, len(pool))
	for _, client := range pool {
		channel := client.Watch(context.Background(), key, clientv3.WithCreatedNotify())
		created := <-channel
		check(created.Err())
		go func() {
			for reply := range channel {
				for range reply.Events {
					events <- time.Now()
				}
			}
		}()
	}
	ready()
	found := newResults()
	found.cpuStart = cpuSeconds()
	began := time.Now()
	for range o.writes {
		sent := time.Now()
		_, err := writer.Put(context.Background(), key, "seen")
		check(err)
		late := time.After(seenTimeout)
		for range pool {
			select {
			case at := <-events:
				record(found.times, found.errors, at.Sub(sent))
			case <-late:
				check(errors.New("not every watcher has seen a write"))
			}
		}
	}
	found.print(time.Since(began).Seconds())
}
