package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	requestTimeout = 5 * time.Second
	leaseSeconds   = 60
)

// task carries out one request, with the key of this number.
type task func(key int) error

// closedLoop sends requests, each when the one before it on its connection was answered.
func closedLoop(o options) {
	pool := o.connect(min(o.clients, o.connections))
	tasks := make([]task, o.connections)
	for i := range tasks {
		tasks[i] = newTask(o, pool[i%len(pool)])
		if i < len(pool) {
			check(tasks[i](0)) // the connections are open before the clock runs
		}
	}
	ready()
	measure := time.Now().Add(time.Duration(o.warmUp * float64(time.Second)))
	end := measure.Add(time.Duration(o.seconds * float64(time.Second)))
	found := newResults()
	time.AfterFunc(time.Until(measure), func() {
		found.lock.Lock()
		found.cpuStart = cpuSeconds()
		found.lock.Unlock()
	})
	var group sync.WaitGroup
	for i, once := range tasks {
		group.Add(1)
		go func() {
			defer group.Done()
			draw := rand.New(rand.NewSource(int64(i)))
			times, failed := newHistogram(), map[string]int{}
			for {
				start := time.Now()
				if !start.Before(end) {
					break
				}
				err := once(draw.Intn(o.keys))
				finished := time.Now()
				if finished.Before(measure) || !finished.Before(end) {
					continue
				}
				if err != nil {
					failed[err.Error()]++
				} else {
					record(times, failed, finished.Sub(start))
				}
			}
			found.add(times, failed)
		}()
	}
	group.Wait()
	found.print(o.seconds)
}

func newTask(o options, client *clientv3.Client) task {
	value := o.value()
	switch o.operation {
	case "put":
		return bounded(func(ctx context.Context, key int) error {
			_, err := client.Put(ctx, o.key(key), value)
			return err
		})
	case "get":
		return bounded(func(ctx context.Context, key int) error {
			reply, err := client.Get(ctx, o.key(key))
			if err == nil && (len(reply.Kvs) != 1 || len(reply.Kvs[0].Value) != o.size) {
				return errors.New("wrong length")
			}
			return err
		})
	case "txn": // if a key exists, write it and the next one
		return bounded(func(ctx context.Context, key int) error {
			name, other := o.key(key), o.key((key+1)%o.keys)
			reply, err := client.Txn(ctx).
				If(clientv3.Compare(clientv3.CreateRevision(name), ">", 0)).
				Then(clientv3.OpPut(name, value), clientv3.OpPut(other, value)).
				Commit()
			if err == nil && !reply.Succeeded {
				return errors.New("not succeeded")
			}
			return err
		})
	case "keepalive":
		return keepAlive(client)
	}
	check(fmt.Errorf("there is no operation %q", o.operation))
	return nil
}

func bounded(once func(ctx context.Context, key int) error) task {
	return func(key int) error {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		defer cancel()
		return once(ctx, key)
	}
}

// keepAlive keeps one lease alive over a stream of its own, as etcd's client does.
func keepAlive(client *clientv3.Client) task {
	granted, err := client.Grant(context.Background(), leaseSeconds)
	check(err)
	stream, err := pb.NewLeaseClient(client.ActiveConnection()).LeaseKeepAlive(context.Background())
	check(err)
	request := &pb.LeaseKeepAliveRequest{ID: int64(granted.ID)}
	return func(int) error {
		if err := stream.Send(request); err != nil {
			return err
		}
		reply, err := stream.Recv()
		if err == nil && reply.TTL <= 0 {
			return errors.New("the lease has ended")
		}
		return err
	}
}
