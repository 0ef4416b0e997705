package main

import (
	"encoding/json"
	"math"
	"sort"
)

// part is a set of keys whose operations are checked as one, because ranges tie the keys together.
type part struct {
	keys       []string
	values     []string // by number; the first ones stand for none, and for any that nobody saw
	operations []*operation
	closed     int // how many of them are not open
	classes    int // of open ones
}

// seenWrite is what reads tell of an unknown write.
type seenWrite struct {
	revision int64
	returned int64 // the end of the first read that saw it
}

type writeKey struct{ key, value string }

// resolve finds out which unknown puts have happened: those whose value was read. A put whose value
// was read at a revision has happened at that revision, and before that read had ended. This turns
// an open operation into a closed one, and spares Porcupine most of its guessing. It holds for values
// that only one put wrote; others stay open.
func (h *history) resolve() (map[*record]seenWrite, map[writeKey][]*record) {
	writers := map[writeKey][]*record{}
	for i := range h.records {
		if r := &h.records[i]; r.mayHaveWritten() {
			r.puts(func(key, value string) {
				at := writeKey{key, value}
				writers[at] = append(writers[at], r)
			})
		}
	}
	seen := map[*record]seenWrite{}
	for i := range h.records {
		read := &h.records[i]
		if read.Stale {
			continue
		}
		read.seen(func(key, value string, revision int64) {
			found := writers[writeKey{key, value}]
			if len(found) != 1 || !found[0].isOpen() {
				return
			}
			writer := found[0]
			known, ok := seen[writer]
			if !ok {
				known = seenWrite{revision, math.MaxInt64}
			}
			// A read that ended before the call saw the future: the model shall say so.
			if end := read.returned(); end >= writer.CallNs && end < known.returned {
				known.returned = end
			}
			seen[writer] = known
		})
	}
	return seen, writers
}

// split makes the parts: keys that a range covers belong together, others are for themselves.
func (h *history) split() []*part {
	keys := h.sortedKeys()
	roots := make([]int, len(keys)) // union-find, by the number of the key
	for number := range roots {
		roots[number] = number
	}
	find := func(number int) int {
		for roots[number] != number {
			roots[number] = roots[roots[number]]
			number = roots[number]
		}
		return number
	}
	numbers := make(map[string]int, len(keys))
	for number, key := range keys {
		numbers[key] = number
	}
	type bounds struct{ prefix, start, end string }
	first := map[bounds]int{}
	for i := range h.records {
		r := &h.records[i]
		at := bounds{r.Prefix, r.Start, r.End}
		if _, done := first[at]; !r.hasRange() || r.Stale || done {
			continue
		}
		first[at] = -1 // it covers no key that ever was
		for number := sort.SearchStrings(keys, max(r.Start, r.Prefix)); number < len(keys) && r.covers(keys[number]); number++ {
			if first[at] < 0 {
				first[at] = number
			}
			roots[find(number)] = find(first[at])
		}
	}
	byRoot, at := map[int]*part{}, make([]int, len(keys))
	var parts []*part
	for number, key := range keys {
		p := byRoot[find(number)]
		if p == nil {
			p = &part{values: []string{"nothing", "something"}}
			byRoot[find(number)] = p
			parts = append(parts, p)
		}
		at[number] = len(p.keys)
		p.keys = append(p.keys, key)
	}
	seen, writers := h.resolve()
	unique := func(r *record) bool { return len(writers[writeKey{r.Key, r.Value}]) == 1 }
	valueNumbers := make(map[*part]map[string]int, len(parts))
	for i := range h.records {
		r := &h.records[i]
		if r.isLeaseCall() || r.Stale || r.Outcome == "failed" || r.Outcome == "not_applied" || (!r.isWrite() && r.Outcome != "ok") {
			continue
		}
		var p *part
		number := 0
		if r.hasRange() {
			number = first[bounds{r.Prefix, r.Start, r.End}]
		} else {
			number = numbers[r.Key]
		}
		if number < 0 {
			// Only its revision says something; such ranges make a part without keys.
			if p = byRoot[number]; p == nil {
				p = &part{}
				byRoot[number], parts = p, append(parts, p)
			}
			p.add(r, 0, seen, unique, nil)
			continue
		}
		p = byRoot[find(number)]
		if valueNumbers[p] == nil {
			valueNumbers[p] = map[string]int{}
		}
		p.add(r, at[number], seen, unique, valueNumbers[p])
	}
	used := parts[:0]
	for _, p := range parts {
		if len(p.operations) > 0 {
			p.chain()
			p.classify()
			used = append(used, p)
		}
	}
	return used
}

func (h *history) sortedKeys() []string {
	set := map[string]bool{}
	for i := range h.records {
		r := &h.records[i]
		if !r.hasRange() && !r.isLeaseCall() {
			set[r.Key] = true
		}
		for _, w := range r.Writes {
			set[w.key] = true
		}
		for _, found := range r.Items {
			set[found.key] = true
		}
	}
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

func (p *part) add(r *record, key int, seen map[*record]seenWrite, unique func(*record) bool, numbers map[string]int) {
	number := func(value string) int {
		if numbers[value] == 0 {
			numbers[value] = len(p.values)
			p.values = append(p.values, value)
		}
		return numbers[value]
	}
	o := &operation{record: r, call: r.CallNs, returned: r.returned(), key: key, open: r.isOpen()}
	switch {
	case r.Kind == "put":
		o.value = number(r.Value)
		if r.Outcome == "ok" {
			o.revision = r.Revision
		} else if found, ok := seen[r]; ok {
			o.open, o.revision, o.returned = false, found.revision, found.returned
		} else if unique(r) {
			o.value = unseen
		}
	case r.Kind == "delete" && r.Deleted:
		o.revision = r.Revision
	case r.Kind == "get" && r.Found != nil:
		o.value = number(*r.Found)
	case r.hasRange():
		o.revision = r.Revision
		o.cells = make([]cell, len(p.keys))
		for at, name := range p.keys {
			o.cells[at].covered = r.covers(name)
		}
		for _, found := range r.Items {
			if at := sort.SearchStrings(p.keys, found.key); at < len(p.keys) && p.keys[at] == found.key {
				o.cells[at] = cell{value: number(found.value), revision: found.revision, covered: true}
			}
		}
		for _, w := range r.Writes {
			o.writes = append(o.writes, cellWrite{key: sort.SearchStrings(p.keys, w.key)})
			if w.value != nil {
				o.writes[len(o.writes)-1].value = number(*w.value)
			}
		}
	}
	p.operations = append(p.operations, o)
}

// chain tells each write with a known revision which one comes before it.
func (p *part) chain() {
	var writes []*operation
	for _, o := range p.operations {
		if (o.record.isWrite() || o.record.Kind == "txn") && o.revision != 0 {
			writes = append(writes, o)
		}
	}
	sort.SliceStable(writes, func(i, j int) bool { return writes[i].revision < writes[j].revision })
	previous := int64(0)
	for _, o := range writes {
		o.previous, previous = previous, o.revision
	}
}

// classify numbers the open writes, and counts the others.
func (p *part) classify() {
	type class struct {
		key, value      int
		ifRevision      int64
		ifAny, ifAbsent bool
	}
	sort.SliceStable(p.operations, func(i, j int) bool { return p.operations[i].call < p.operations[j].call })
	numbers, counts := map[class]int{}, map[class]int{}
	for _, o := range p.operations {
		if !o.open {
			p.closed++
			continue
		}
		like := class{key: o.key, value: o.value, ifRevision: -1, ifAny: o.record.IfAny, ifAbsent: o.record.IfAbsent}
		if o.record.IfRevision != nil {
			like.ifRevision = *o.record.IfRevision
		}
		if _, known := numbers[like]; !known {
			numbers[like] = p.classes
			p.classes++
		}
		o.class, o.rank = numbers[like], counts[like]
		counts[like]++
	}
}

// unmarshalArray decodes a JSON array of just these elements.
func unmarshalArray(data []byte, fields ...interface{}) error {
	return json.Unmarshal(data, &fields)
}
