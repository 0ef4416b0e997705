package main

import (
	"fmt"
	"strings"

	"github.com/anishathalye/porcupine"
)

// The model: a map of keys to (value, revision), for the keys of one part of a history.
//
// Revisions are positions in one log, so in any order that explains the history those of the writes
// rise. Porcupine is told which write has to be next (operation.previous), which prunes what it
// would find out later. A range says the store's revision at which it was read: no write at or below
// that comes after it, none above it before.
//
// A write whose outcome is unknown, and whose value nobody saw, takes effect in the model wherever
// Porcupine puts it, at a revision not known yet ("0"); that it never happened is the same as that
// it happened at the very end, which is where its interval ends. One whose value somebody saw has
// happened: see resolve.

// operation is a record made ready for the model.
type operation struct {
	record   *record
	call     int64
	returned int64
	key      int    // number of the key in its part; not for ranges
	value    int    // number of the value that a put writes or a get found; absent for none
	cells    []cell // what a range says of each key of the part; covered false where it says nothing
	open     bool   // nobody knows whether it took effect
	revision int64  // of a write that took effect; 0 if not known
	previous int64  // the revision of the write before it, among those known in its part
}

const absent = 0

// cell is the state of one key.
type cell struct {
	value    int
	revision int64 // 0: not known yet, but above floor
	floor    int64
	covered  bool // only in what a range says
}

// state is the state of a part. It is never changed, only replaced.
type state struct {
	last  int64 // the highest revision among the writes whose revision is known
	floor int64 // the store's revision is at least this
	cells []cell
}

func (s *state) with(key int, c cell) *state {
	next := &state{last: s.last, floor: s.floor, cells: make([]cell, len(s.cells))}
	copy(next.cells, s.cells)
	next.cells[key] = c
	if c.revision > next.floor {
		next.floor = c.revision
	}
	return next
}

// matches tells whether a cell can have this revision; 0: any.
func (c cell) matches(revision int64) bool {
	switch {
	case revision == 0:
		return true
	case c.revision == 0:
		return revision > c.floor
	}
	return c.revision == revision
}

// learn returns the state in which the cell's revision is known to be this one.
func (s *state) learn(key int, revision int64) *state {
	c := s.cells[key]
	if revision == 0 || c.value == absent || c.revision == revision {
		return s
	}
	c.revision = revision
	return s.with(key, c)
}

func (s *state) step(o *operation) (bool, *state) {
	switch {
	case o.record.Kind == "range":
		return s.stepRange(o)
	case o.record.Kind == "get":
		c := s.cells[o.key]
		if c.value != o.value || (c.value != absent && !c.matches(o.record.Revision)) {
			return false, s
		}
		return true, s.learn(o.key, o.record.Revision)
	case o.record.Outcome == "failed_condition":
		return s.stepFailed(o)
	}
	return s.stepWrite(o)
}

func (s *state) stepRange(o *operation) (bool, *state) {
	if o.revision != 0 && o.revision < s.floor {
		return false, s
	}
	next := s
	for key, said := range o.cells {
		if !said.covered {
			continue
		}
		c := s.cells[key]
		if c.value != said.value || (c.value != absent && !c.matches(said.revision)) {
			return false, s
		}
		next = next.learn(key, said.revision)
	}
	if o.revision > next.floor {
		next = &state{last: next.last, floor: o.revision, cells: next.cells}
	}
	return true, next
}

// stepFailed: the condition must not hold, and the key be what the answer says.
func (s *state) stepFailed(o *operation) (bool, *state) {
	c, said := s.cells[o.key], o.record.Revision
	if said != notSaid && (c.value == absent) != (said == 0) {
		return false, s
	}
	if said == notSaid {
		said = 0
	}
	if c.value == absent {
		return !o.record.IfAbsent, s
	}
	wanted := o.record.IfRevision
	if o.record.IfAny || !c.matches(said) {
		return false, s
	}
	if wanted != nil && (c.revision == *wanted || said == *wanted) {
		return false, s
	}
	return true, s.learn(o.key, said)
}

func (s *state) stepWrite(o *operation) (bool, *state) {
	c, r := s.cells[o.key], o.record
	there := c.value != absent
	holds := !(r.IfAbsent && there) && !(r.IfAny && !there) &&
		(r.IfRevision == nil || (there && c.matches(*r.IfRevision)))
	if o.open {
		if !holds || (r.Kind == "delete" && !there) {
			return true, s // it may have had no effect
		}
	} else if !holds || (r.Outcome == "ok" && !answersTruly(r, there)) {
		return false, s
	}
	if r.Kind == "delete" && !there {
		return true, s
	}
	if o.revision != 0 && (o.revision <= s.floor || s.last != o.previous) {
		return false, s
	}
	if r.IfRevision != nil {
		s = s.learn(o.key, *r.IfRevision)
	}
	next := s.with(o.key, cell{value: o.value, revision: o.revision, floor: s.floor})
	if o.value == absent {
		next.cells[o.key] = cell{}
	}
	if o.revision != 0 {
		next.last, next.floor = o.revision, o.revision
	} else {
		next.floor = s.floor + 1 // it has used one, whichever that was
	}
	return true, next
}

// answersTruly tells whether an acknowledged write says rightly whether the key was there.
func answersTruly(r *record, there bool) bool {
	if r.Kind == "put" {
		return r.Created != there
	}
	return r.Deleted == there
}

func (s *state) equal(other *state) bool {
	if s.last != other.last || s.floor != other.floor {
		return false
	}
	for key, c := range s.cells {
		if c != other.cells[key] {
			return false
		}
	}
	return true
}

func (s *state) hash() uint64 {
	const prime = 1099511628211
	h := uint64(14695981039346656037)
	mix := func(number int64) { h = (h ^ uint64(number)) * prime }
	mix(s.floor)
	for _, c := range s.cells {
		mix(int64(c.value))
		mix(c.revision)
	}
	return h
}

// model returns Porcupine's model of a part.
func (p *part) model() porcupine.Model {
	return porcupine.Model{
		Init: func() interface{} { return &state{cells: make([]cell, len(p.keys))} },
		Step: func(s, input, _ interface{}) (bool, interface{}) {
			return s.(*state).step(input.(*operation))
		},
		Equal: func(a, b interface{}) bool { return a.(*state).equal(b.(*state)) },
		Hash:  func(s interface{}) uint64 { return s.(*state).hash() },
		DescribeOperation: func(input, _ interface{}) string {
			return input.(*operation).describe()
		},
		DescribeState:             func(s interface{}) string { return p.describe(s.(*state)) },
		DescribeOperationMetadata: func(note interface{}) string { return note.(string) },
	}
}

func (o *operation) describe() string {
	if o.record.isOpen() && !o.open {
		return fmt.Sprintf("%s, seen at %d", o.record.describe(), o.revision)
	}
	return o.record.describe()
}

func (p *part) describe(s *state) string {
	var cells []string
	for key, c := range s.cells {
		if c.value != absent {
			cells = append(cells, fmt.Sprintf("%s = %s at %d", p.keys[key], p.values[c.value], c.revision))
		}
	}
	return fmt.Sprintf("{%s}, store at %d", strings.Join(cells, ", "), s.floor)
}
