package main

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	maxReasons   = 8
	maxExplained = 3 // parts that are checked again, to say what is wrong with them
)

// verdict is what is found out of one history; see Verdict in tests/support/history.py.
type verdict struct {
	History    string   `json:"history"`
	Status     string   `json:"status"`
	Operations int      `json:"operations"`
	Unknown    int      `json:"unknown"`
	Parts      int      `json:"parts"`
	Largest    int      `json:"largest"`
	Seconds    float64  `json:"seconds"`
	Reasons    []string `json:"reasons"`
	Picture    string   `json:"picture"`
}

func check(h *history, timeout time.Duration, pictures string) *verdict {
	begin := time.Now()
	v := &verdict{History: h.name, Operations: len(h.records), Reasons: []string{}}
	for i := range h.records {
		if h.records[i].isOpen() {
			v.Unknown++
		}
	}
	stored := h.split()
	var parts []checkable
	for _, p := range stored {
		parts = append(parts, p)
	}
	for _, p := range h.splitLocks() {
		parts = append(parts, p)
	}
	v.Parts = len(parts)
	for _, p := range parts {
		v.Largest = max(v.Largest, p.size())
	}
	results := checkParts(parts, begin.Add(timeout))
	v.Seconds = time.Since(begin).Seconds()
	var reasons []string
	undecided, illegal := 0, 0
	for at, result := range results {
		switch result {
		case porcupine.Illegal:
			if illegal++; illegal > maxExplained {
				continue
			}
			picture, reason := explain(h.name, parts[at], timeout, pictures, v.Picture == "")
			if v.Picture == "" {
				v.Picture = picture
			}
			reasons = append(reasons, reason)
		case porcupine.Unknown:
			undecided++
		}
	}
	if illegal > maxExplained {
		reasons = append(reasons, fmt.Sprintf("%d of %d parts have no explanation", illegal, len(parts)))
	}
	for _, others := range [][]string{h.checkRanges(), h.checkValues(), checkRevisions(stored)} {
		reasons = append(reasons, others...)
	}
	switch {
	case len(reasons) > 0:
		v.Status = "violation"
	case undecided > 0:
		v.Status = "undecided"
		reasons = append(reasons, fmt.Sprintf("%d of %d parts not decided within %s", undecided, len(parts), timeout))
	default:
		v.Status = "linearizable"
	}
	if more := len(reasons) - maxReasons; more > 0 {
		reasons = append(reasons[:maxReasons], fmt.Sprintf("and %d more", more))
	}
	v.Reasons = append(v.Reasons, reasons...)
	return v
}

// checkable is a part of a history that is checked as one.
type checkable interface {
	label() string
	size() int
	at(id int) (*record, string) // an operation, and what to call it
	model() porcupine.Model
	forPorcupine() []porcupine.Operation
}

// checkParts asks Porcupine for each part.
func checkParts(parts []checkable, deadline time.Time) []porcupine.CheckResult {
	results := make([]porcupine.CheckResult, len(parts))
	var group sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for at, p := range parts {
		group.Add(1)
		slots <- struct{}{}
		go func(at int, p checkable) {
			defer func() { <-slots; group.Done() }()
			left := time.Until(deadline)
			if left <= 0 {
				results[at] = porcupine.Unknown // 0 would be no limit
				return
			}
			results[at] = porcupine.CheckOperationsTimeout(p.model(), p.forPorcupine(), left)
		}(at, p)
	}
	group.Wait()
	return results
}

func (p *part) label() string {
	keys := strings.Join(p.keys[:min(3, len(p.keys))], ", ")
	if len(p.keys) > 3 {
		keys += ", …"
	}
	if keys == "" {
		keys = "none"
	}
	return keys
}

func (p *part) size() int { return len(p.operations) }

func (p *part) at(id int) (*record, string) { return p.operations[id].record, p.operations[id].describe() }

func (p *part) forPorcupine() []porcupine.Operation {
	end := int64(0)
	for _, o := range p.operations {
		end = max(end, o.call)
		if o.returned != math.MaxInt64 {
			end = max(end, o.returned)
		}
	}
	rows := p.rows()
	operations := make([]porcupine.Operation, len(p.operations))
	for i, o := range p.operations {
		operations[i] = porcupine.Operation{
			ClientId: rows[o.record.Client],
			Input:    o,
			Call:     o.call,
			Output:   o,
			Return:   min(o.returned, end+1),
			Metadata: strings.TrimSpace(fmt.Sprintf("client %d %s", o.record.Client, o.record.Note)),
		}
	}
	return operations
}

// rows gives each client a row of the picture, which has one for each number up to the highest.
func (p *part) rows() map[int]int {
	rows := map[int]int{}
	var clients []int
	for _, o := range p.operations {
		if _, known := rows[o.record.Client]; !known {
			rows[o.record.Client] = 0
			clients = append(clients, o.record.Client)
		}
	}
	sort.Ints(clients)
	for row, client := range clients {
		rows[client] = row
	}
	return rows
}

// explain draws a part that is not linearizable, and says what the longest order leaves out.
func explain(name string, p checkable, timeout time.Duration, pictures string, draw bool) (string, string) {
	operations := p.forPorcupine()
	_, info := porcupine.CheckOperationsVerbose(p.model(), operations, timeout)
	longest := []int{}
	for _, order := range info.PartialLinearizations()[0] {
		if len(order) > len(longest) {
			longest = order
		}
	}
	explained := map[int]bool{}
	for _, id := range longest {
		explained[id] = true
	}
	var left []int
	for id := range operations {
		if !explained[id] {
			left = append(left, id)
		}
	}
	sort.SliceStable(left, func(i, j int) bool { return operations[left[i]].Return < operations[left[j]].Return })
	reason := fmt.Sprintf("keys %s: no order explains all %d operations, the best found explains %d", p.label(), len(operations), len(longest))
	if len(left) > 0 {
		r, description := p.at(left[0])
		reason += fmt.Sprintf("; left over first: client %d: %s", r.Client, description)
	}
	if pictures == "" || !draw {
		return "", reason
	}
	slug := strings.Trim(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(name, "-"), "-")
	if slug == "" {
		slug = "history"
	}
	picture := filepath.Join(pictures, slug+".html")
	if err := porcupine.VisualizePath(p.model(), info, picture); err != nil {
		return "", fmt.Sprintf("%s (no picture: %v)", reason, err)
	}
	return picture, reason
}

// checkRanges: the items of a range are what it asked for, in order, each once.
func (h *history) checkRanges() []string {
	var reasons []string
	for i := range h.records {
		r := &h.records[i]
		for at, found := range r.Items {
			if !r.covers(found.key) || (at > 0 && r.Items[at-1].key >= found.key) {
				reasons = append(reasons, fmt.Sprintf("client %d: key %s is out of place in: %s", r.Client, found.key, r.describe()))
				break
			}
		}
	}
	return reasons
}

// checkValues: whatever is read, also by a stale read, was written by a put that may have happened,
// and began before the read ended.
func (h *history) checkValues() []string {
	writers := map[writeKey][]*record{}
	for i := range h.records {
		r := &h.records[i]
		r.puts(func(key, value string) {
			at := writeKey{key, value}
			writers[at] = append(writers[at], r)
		})
	}
	seen, _ := h.resolve()
	var reasons []string
	for i := range h.records {
		read := &h.records[i]
		read.seen(func(key, value string, revision int64) {
			why := "nobody wrote it"
			for _, writer := range writers[writeKey{key, value}] {
				known := seen[writer].revision
				if writer.Outcome == "ok" {
					known = writer.Revision
				}
				switch {
				case !writer.mayHaveWritten():
					why = fmt.Sprintf("its put was answered with %s", writer.Outcome)
				case writer.CallNs > read.returned():
					why = "its put began later"
				case known != 0 && revision != 0 && known != revision:
					why = fmt.Sprintf("it was written at %d", known)
				default:
					return
				}
			}
			kind := "read"
			if read.Stale {
				kind = "stale read"
			}
			reasons = append(reasons, fmt.Sprintf("client %d: a %s gave %s = %s at %d, but %s", read.Client, kind, key, value, revision, why))
		})
	}
	return reasons
}

// checkRevisions: over the whole store each revision names one write, and what has a higher one did
// not end before what has a lower one began. A range stands right behind the write of its revision.
func checkRevisions(parts []*part) []string {
	var all []*operation
	for _, p := range parts {
		for _, o := range p.operations {
			if o.revision != 0 {
				all = append(all, o)
			}
		}
	}
	rank := func(o *operation) int64 {
		if o.record.Kind == "range" {
			return 2*o.revision + 1
		}
		return 2 * o.revision
	}
	sort.SliceStable(all, func(i, j int) bool { return rank(all[i]) < rank(all[j]) })
	var reasons []string
	var first *operation // of those with a higher rank, the first that had ended
	for end := len(all); end > 0; {
		begin := end - 1
		for begin > 0 && rank(all[begin-1]) == rank(all[end-1]) {
			begin--
		}
		same := all[begin:end]
		for at, o := range same {
			if at > 0 && o.record.Kind != "range" {
				reasons = append(reasons, fmt.Sprintf("two writes have revision %d: %s; %s", o.revision, same[at-1].describe(), o.describe()))
			}
			if first != nil && first.returned < o.call {
				reasons = append(reasons, fmt.Sprintf("revisions go back in time: first client %d: %s; when that had ended client %d: %s", first.record.Client, first.describe(), o.record.Client, o.describe()))
			}
		}
		for _, o := range same {
			if first == nil || o.returned < first.returned {
				first = o
			}
		}
		end = begin
	}
	return reasons
}
