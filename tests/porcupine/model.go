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
// A write whose outcome is unknown, and whose value nobody saw ("open"; for the others see resolve),
// could take effect anywhere after its call, or never, which would make Porcupine try far too much.
// Two facts cut that down. First, it can be moved to later, past all that it does not matter to: so
// it is let take effect only right before an operation on its key that is impossible without it
// (state.needs). Where there is none, it is left over, and does nothing at the end. Second, open
// writes of one kind to one key are alike, so they are used in the order of their calls.

// operation is a record made ready for the model.
type operation struct {
	record   *record
	call     int64
	returned int64
	key      int    // number of the key in its part; not for ranges
	value    int    // number of the value that a put writes or a get found; absent for none
	cells    []cell // what a range says of each key of the part; covered false where it says nothing
	writes   []cellWrite
	open     bool  // nobody knows whether it took effect
	class    int   // of an open write: those of one class are alike
	rank     int   // which of its class it is, in the order of the calls
	revision int64 // of a write that took effect; 0 if not known
	previous int64 // the revision of the write before it, among those known in its part
}

// cellWrite is what a transaction writes: the number of a value under that of a key.
type cellWrite struct{ key, value int }

const (
	absent = 0
	unseen = 1 // what an open put writes: a value that nobody ever saw
)

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
	done  int   // how many operations have been taken, open ones left out
	used  []int // how many open writes of each class have taken effect
	// Open writes have just taken effect on these keys, in their order; without, they were as follows.
	needs []need
}

// need: without an open write, this key was so.
type need struct {
	key int
	was cell
}

func (s *state) with(key int, c cell) *state {
	next := *s
	next.cells = append([]cell(nil), s.cells...)
	next.cells[key] = c
	if c.revision > next.floor {
		next.floor = c.revision
	}
	return &next
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

// step takes an operation; p.closed is the number of those that are not open.
func (p *part) step(s *state, o *operation) (bool, *state) {
	if o.open && s.done == p.closed {
		return true, s // left over
	}
	last := len(s.needs) - 1
	for at, before := range s.needs {
		if o.open && o.key != before.key {
			if at == last && o.key < before.key {
				return false, s
			}
			continue // a range may need several keys' writes
		}
		if !o.touches(before.key) {
			return false, s
		}
		if possible, _ := s.with(before.key, before.was).take(o); possible {
			return false, s
		}
	}
	possible, next := s.take(o)
	if !possible {
		return false, s
	}
	result := *next
	result.needs = nil
	if o.open {
		result.needs = append([]need(nil), s.needs...)
		if last >= 0 && s.needs[last].key == o.key {
			result.needs = result.needs[:last]
		}
		result.needs = append(result.needs, need{o.key, s.cells[o.key]})
		result.used = append([]int(nil), s.used...)
		result.used[o.class]++
	} else {
		result.done++
	}
	return true, &result
}

func (o *operation) touches(key int) bool {
	if o.record.hasRange() {
		return o.cells[key].covered
	}
	return o.key == key
}

// take tells whether an operation is possible, open ones: has an effect, and what comes of it.
func (s *state) take(o *operation) (bool, *state) {
	switch {
	case o.open:
		return s.takeOpen(o)
	case o.record.Kind == "range":
		return s.takeRange(o)
	case o.record.Kind == "txn":
		return s.takeTxn(o)
	case o.record.Kind == "get":
		c := s.cells[o.key]
		if c.value != o.value || (c.value != absent && !c.matches(o.record.Revision)) {
			return false, s
		}
		return true, s.learn(o.key, o.record.Revision)
	case o.record.Outcome == "failed_condition":
		return s.takeFailed(o)
	}
	return s.takeWrite(o)
}

// conditionHolds tells whether a write's condition can hold.
func (s *state) conditionHolds(o *operation) bool {
	c, r := s.cells[o.key], o.record
	there := c.value != absent
	return !(r.IfAbsent && there) && !(r.IfAny && !there) &&
		(r.IfRevision == nil || (there && c.matches(*r.IfRevision)))
}

func (s *state) takeOpen(o *operation) (bool, *state) {
	c := s.cells[o.key]
	if s.used[o.class] != o.rank || !s.conditionHolds(o) {
		return false, s
	}
	if o.value == absent {
		return c.value != absent, s.with(o.key, cell{})
	}
	// It has a revision above the one before, but which, in the order of all, is not known: it may
	// have happened before other keys' writes that it has been moved past.
	return true, s.with(o.key, cell{value: o.value, floor: max(c.floor, c.revision)})
}

func (s *state) takeRange(o *operation) (bool, *state) {
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
		raised := *next
		raised.floor = o.revision
		next = &raised
	}
	return true, next
}

// takeTxn: all that it saw before its writes is so, and they happen together.
func (s *state) takeTxn(o *operation) (bool, *state) {
	next, present := s, 0
	for key, said := range o.cells {
		if !said.covered {
			continue
		}
		c := s.cells[key]
		if c.value != absent {
			present++
		}
		if o.record.Clears {
			continue
		}
		if c.value != said.value || (c.value != absent && !c.matches(said.revision)) {
			return false, s
		}
		next = next.learn(key, said.revision)
	}
	if o.record.Clears && present != o.record.Count {
		return false, s
	}
	if o.revision == 0 {
		return true, next
	}
	if o.revision <= next.floor || s.last != o.previous {
		return false, s
	}
	written := *next
	written.cells = append([]cell(nil), next.cells...)
	for key, said := range o.cells {
		if o.record.Clears && said.covered {
			written.cells[key] = cell{}
		}
	}
	for _, w := range o.writes {
		written.cells[w.key] = cell{}
		if w.value != absent {
			written.cells[w.key] = cell{value: w.value, revision: o.revision, floor: s.floor}
		}
	}
	written.last, written.floor = o.revision, o.revision
	return true, &written
}

// takeFailed: the condition must not hold, and the key be what the answer says.
func (s *state) takeFailed(o *operation) (bool, *state) {
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

func (s *state) takeWrite(o *operation) (bool, *state) {
	r := o.record
	there := s.cells[o.key].value != absent
	if !s.conditionHolds(o) || (r.Outcome == "ok" && !answersTruly(r, there)) {
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
	written := cell{value: o.value, revision: o.revision, floor: s.floor}
	if o.value == absent {
		written = cell{}
	}
	next := s.with(o.key, written)
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
	// What has been taken and used is the same wherever Porcupine compares states.
	if s.last != other.last || s.floor != other.floor || len(s.needs) != len(other.needs) {
		return false
	}
	for at, before := range s.needs {
		if before != other.needs[at] {
			return false
		}
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
		Init: func() interface{} {
			return &state{cells: make([]cell, len(p.keys)), used: make([]int, p.classes)}
		},
		Step: func(s, input, _ interface{}) (bool, interface{}) {
			return p.step(s.(*state), input.(*operation))
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
