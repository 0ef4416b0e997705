package main

import (
	"fmt"
	"math"
	"sort"

	"github.com/anishathalye/porcupine"
)

// The model of a lock and of the leases that claim it, or of one lease that claims none: a part is
// what has one key. A lease ends when it is revoked, or by itself at any moment after its TTL, less
// the share that a holder does not rely on, has passed since the call of the last keep-alive that was
// acknowledged: never before, and perhaps never.
//
// That a lease ends by itself is an operation that nobody has asked for and that may be left over. It
// can be moved to later, past all that it does not matter to: so it is let take effect only right
// before an operation that is impossible without it (lockState.pending), or that passes the lock on,
// for who has ended by then does not get it. The holder that follows then has a token that is known
// only when somebody tells it.

// reliedShare is the part of its TTL that a holder relies on (cluster.client.leasing).
const reliedShare = 0.9

type leaseStatus byte

const (
	notBegun leaseStatus = iota
	isThere
	hasEnded
)

const noLease = -1

// lockState is the state of a part. It is never changed, only replaced.
type lockState struct {
	leases  string // a leaseStatus for each lease
	queue   string // the numbers of the leases that wait, in their order
	holder  int    // the number of the lease that holds the lock
	token   int64  // 0: not known yet, but above floor
	floor   int64
	last    int64  // the highest revision of what has been taken
	pending string // the leases that have just ended by themselves, in their order; see base
	base    *lockState
	done    int // how many of the others have been taken
}

// lockCall is an operation made ready for the model.
type lockCall struct {
	record *record
	lease  int   // its number in the part; noLease
	call   int64 // as in record, but of a lease's end
	ends   bool  // nobody asked for it: a lease ends by itself
}

type lockPart struct {
	key    string
	leases []int64
	calls  []*lockCall
	asked  int // how many of them do not end a lease by themselves
}

func (r *record) isLeaseCall() bool {
	switch r.Kind {
	case "grant", "keepalive", "revoke", "acquire", "withdraw", "release", "fenced", "look":
		return true
	}
	return false
}

// splitLocks makes the parts of the calls of leases and locks.
func (h *history) splitLocks() []*lockPart {
	byKey := map[string][]*record{}
	var keys []string
	for i := range h.records {
		r := &h.records[i]
		if !r.isLeaseCall() || r.Outcome == "not_applied" || r.ReturnNs == nil {
			continue
		}
		if byKey[r.Key] == nil {
			keys = append(keys, r.Key)
		}
		byKey[r.Key] = append(byKey[r.Key], r)
	}
	parts := make([]*lockPart, 0, len(keys))
	for _, key := range keys {
		parts = append(parts, makeLockPart(key, byKey[key]))
	}
	return parts
}

func makeLockPart(key string, records []*record) *lockPart {
	p := &lockPart{key: key}
	numbers, ends := map[int64]int{}, map[int]*lockCall{}
	for _, r := range records {
		o := &lockCall{record: r, lease: noLease, call: r.CallNs}
		if r.Lease != 0 {
			number, known := numbers[r.Lease]
			if !known {
				number = len(p.leases)
				numbers[r.Lease] = number
				p.leases = append(p.leases, r.Lease)
			}
			o.lease = number
			if r.begins() || (r.Kind == "keepalive" && r.Outcome == "ok") {
				at := r.CallNs + int64(float64(r.TTLMs)*reliedShare*1e6)
				if ends[number] == nil {
					ends[number] = &lockCall{record: r, lease: number, ends: true}
				}
				ends[number].call = max(ends[number].call, at)
			}
		}
		p.calls = append(p.calls, o)
	}
	p.asked = len(p.calls)
	for number := range p.leases {
		if ends[number] != nil {
			p.calls = append(p.calls, ends[number])
		}
	}
	sort.SliceStable(p.calls, func(i, j int) bool { return p.calls[i].call < p.calls[j].call })
	return p
}

// begins tells whether a call has begun a lease: it is named by the revision.
func (r *record) begins() bool {
	return r.Outcome == "ok" && r.Lease == r.Revision && (r.Kind == "grant" || r.Kind == "acquire")
}

// passesOn tells whether a call may give the lock to the one that waits first.
func (o *lockCall) passesOn() bool {
	return o.record.Outcome == "ok" && (o.record.Kind == "release" || o.record.Kind == "revoke")
}

func (p *lockPart) label() string { return p.key }

func (p *lockPart) size() int { return len(p.calls) }

func (p *lockPart) at(id int) (*record, string) { return p.calls[id].record, p.calls[id].describe() }

func (p *lockPart) forPorcupine() []porcupine.Operation {
	end := int64(0)
	for _, o := range p.calls {
		end = max(end, o.call, *o.record.ReturnNs)
	}
	operations := make([]porcupine.Operation, len(p.calls))
	for i, o := range p.calls {
		returned := *o.record.ReturnNs
		if o.ends {
			returned = math.MaxInt64
		}
		operations[i] = porcupine.Operation{
			ClientId: i, Input: o, Call: o.call, Output: o, Return: min(returned, end+1),
			Metadata: fmt.Sprintf("client %d %s", o.record.Client, o.record.Note),
		}
	}
	return operations
}

func (p *lockPart) step(s *lockState, o *lockCall) (bool, *lockState) {
	if o.ends {
		if s.done == p.asked || leaseStatus(s.leases[o.lease]) != isThere {
			return s.done == p.asked, s // left over
		}
		base := s.base
		if base == nil {
			base = s
		}
		next := *s.end(o.lease, 0)
		next.base, next.pending = base, s.pending+string(rune(o.lease))
		return true, &next
	}
	for left := range []rune(s.pending) {
		if o.passesOn() {
			break
		}
		without := s.base
		for at, lease := range []rune(s.pending) {
			if at != left {
				without = without.end(int(lease), 0)
			}
		}
		if possible, _ := without.take(o); possible {
			return false, s
		}
	}
	possible, next := s.take(o)
	if !possible {
		return false, s
	}
	result := *next
	result.done, result.pending, result.base = s.done+1, "", nil
	return true, &result
}

func (s *lockState) with(lease int, status leaseStatus) *lockState {
	next, leases := *s, []byte(s.leases)
	leases[lease] = byte(status)
	next.leases = string(leases)
	return &next
}

// end lets a lease end: what it holds goes to the next one that waits, under this token (0: not known).
func (s *lockState) end(lease int, token int64) *lockState {
	return s.with(lease, hasEnded).giveUp(lease, token)
}

func (s *lockState) giveUp(lease int, token int64) *lockState {
	next := *s
	queue := []rune(s.queue)
	if s.holder != lease {
		for at, waiting := range queue {
			if int(waiting) == lease {
				next.queue = string(queue[:at]) + string(queue[at+1:])
			}
		}
		return &next
	}
	next.floor = max(s.floor, s.token)
	next.holder, next.token = noLease, 0
	if len(queue) > 0 {
		next.holder, next.token, next.queue = int(queue[0]), token, string(queue[1:])
	}
	return &next
}

func (s *lockState) waits(lease int) bool {
	for _, waiting := range s.queue {
		if int(waiting) == lease {
			return true
		}
	}
	return false
}

// holds tells whether a lease can hold the lock under this token, and what is known then.
func (s *lockState) holds(lease int, token int64) (bool, *lockState) {
	if s.holder == noLease || s.holder != lease || token == 0 || (s.token != 0 && s.token != token) || token <= s.floor {
		return false, s
	}
	next := *s
	next.token = token
	return true, &next
}

// writes takes the revision of a write: they rise.
func (s *lockState) writes(revision int64) (bool, *lockState) {
	if revision <= s.last {
		return false, s
	}
	next := *s
	next.last = revision
	return true, &next
}

func (s *lockState) is(lease int, status leaseStatus) bool {
	return lease != noLease && leaseStatus(s.leases[lease]) == status
}

func (s *lockState) take(o *lockCall) (bool, *lockState) {
	r := o.record
	if r.Outcome == "failed_condition" {
		return s.isRefused(o), s
	}
	switch r.Kind {
	case "grant":
		if !s.is(o.lease, notBegun) {
			return false, s
		}
		return s.with(o.lease, isThere).writes(r.Revision)
	case "keepalive":
		return s.is(o.lease, isThere), s
	case "revoke":
		if !s.is(o.lease, isThere) {
			return false, s
		}
		return s.end(o.lease, r.Revision).writes(r.Revision)
	case "acquire":
		return s.takeAcquire(o)
	case "withdraw":
		if r.Token != 0 {
			return s.holds(o.lease, r.Token)
		}
		if s.holder == o.lease && s.holder != noLease {
			return false, s
		}
		if !s.waits(o.lease) {
			return true, s
		}
		return s.giveUp(o.lease, 0).writes(r.Revision)
	case "release":
		held, next := s.holds(o.lease, r.Token)
		if !held {
			return false, s
		}
		return next.giveUp(next.holder, r.Revision).writes(r.Revision)
	case "fenced":
		next := s
		if r.Token != 0 {
			held, known := s.holds(o.lease, r.Token)
			if !held {
				return false, s
			}
			next = known
		} else if !s.is(o.lease, isThere) {
			return false, s
		}
		return next.writes(r.Revision)
	case "look":
		if r.Token == 0 {
			return s.holder == noLease, s
		}
		return s.holds(o.lease, r.Token)
	}
	return false, s
}

// isRefused tells whether a refusal is right. It is of what there is, and changes nothing.
func (s *lockState) isRefused(o *lockCall) bool {
	switch o.record.Code {
	case "lease_not_found":
		return !s.is(o.lease, isThere)
	case "lock_held":
		return s.holder != noLease && s.holder != o.lease
	case "lock_lost":
		held, _ := s.holds(o.lease, o.record.Token)
		return !held || s.token == 0
	}
	return true
}

func (s *lockState) takeAcquire(o *lockCall) (bool, *lockState) {
	r := o.record
	if r.Token != 0 && s.holder == o.lease {
		return s.holds(o.lease, r.Token) // it asks again
	}
	if r.Token == 0 && s.waits(o.lease) {
		return true, s
	}
	next := s
	if r.begins() && s.is(o.lease, notBegun) {
		next = s.with(o.lease, isThere)
	}
	if !next.is(o.lease, isThere) {
		return false, s
	}
	taken := *next
	if r.Token == 0 {
		if s.holder == noLease || s.holder == o.lease {
			return false, s
		}
		taken.queue += string(rune(o.lease))
		return taken.writes(r.Revision)
	}
	if s.holder != noLease || r.Token <= s.floor || r.Token != r.Revision {
		return false, s
	}
	taken.holder, taken.token = o.lease, r.Token
	return taken.writes(r.Revision)
}

func (p *lockPart) model() porcupine.Model {
	begin := make([]byte, len(p.leases))
	return porcupine.Model{
		Init: func() interface{} { return &lockState{leases: string(begin), holder: noLease} },
		Step: func(s, input, _ interface{}) (bool, interface{}) {
			return p.step(s.(*lockState), input.(*lockCall))
		},
		Equal: func(a, b interface{}) bool { return a.(*lockState).equal(b.(*lockState)) },
		DescribeOperation: func(input, _ interface{}) string {
			return input.(*lockCall).describe()
		},
		DescribeState:             func(s interface{}) string { return p.describe(s.(*lockState)) },
		DescribeOperationMetadata: func(note interface{}) string { return note.(string) },
	}
}

func (s *lockState) equal(other *lockState) bool {
	if (s.base == nil) != (other.base == nil) || (s.base != nil && !s.base.equal(other.base)) {
		return false
	}
	a, b := *s, *other
	a.base, b.base = nil, nil
	return a == b
}

func (p *lockPart) describe(s *lockState) string {
	if s.holder == noLease {
		return fmt.Sprintf("free, revision %d", s.last)
	}
	return fmt.Sprintf("held by %d under %d, %d wait, revision %d", p.leases[s.holder], s.token, len([]rune(s.queue)), s.last)
}

func (o *lockCall) describe() string {
	r := o.record
	if o.ends {
		return fmt.Sprintf("lease %d ends by itself", r.Lease)
	}
	return fmt.Sprintf("%s %s lease %d token %d -> %s%s at %d", r.Kind, r.Key, r.Lease, r.Token, r.Outcome, r.Code, r.Revision)
}
