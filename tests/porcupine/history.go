package main

import (
	"fmt"
	"math"
	"strings"
)

// record is one line of the file; see Operation in tests/support/history.py.
type record struct {
	History *string `json:"history"` // only in the line that begins a history

	Client     int    `json:"client"`
	Kind       string `json:"kind"`
	CallNs     int64  `json:"call_ns"`
	ReturnNs   *int64 `json:"return_ns"`
	Key        string `json:"key"`
	Value      string `json:"value"`
	IfRevision *int64 `json:"if_revision"`
	IfAny      bool   `json:"if_any"`
	IfAbsent   bool   `json:"if_absent"`
	Prefix     string `json:"prefix"`
	Start      string `json:"start"`
	End        string `json:"end"`
	Stale      bool   `json:"stale"`
	Note       string `json:"note"`

	Outcome  string  `json:"outcome"`
	Revision int64   `json:"revision"`
	Created  bool    `json:"created"`
	Deleted  bool    `json:"deleted"`
	Found    *string `json:"found"`
	Items    []item  `json:"items"`

	// Of a transaction: what it wrote. Its items are the keys with its prefix before that.
	Writes []write `json:"writes"`
	Clears bool    `json:"clears"` // it removed all keys with its prefix, of which there were Count
	Count  int     `json:"count"`

	// Of a lease or a lock.
	Lease int64  `json:"lease"`
	Token int64  `json:"token"`
	TTLMs int64  `json:"ttl_ms"`
	Code  string `json:"code"` // of a refusal
}

// write is what a transaction wrote under a key; nil removes it.
type write struct {
	key   string
	value *string
}

func (w *write) UnmarshalJSON(data []byte) error {
	return unmarshalArray(data, &w.key, &w.value)
}

// notSaid stands in place of the revision that a failed condition saw.
const notSaid = -1

type item struct {
	key, value string
	revision   int64
}

type history struct {
	name    string
	records []record
}

func (i *item) UnmarshalJSON(data []byte) error {
	return unmarshalArray(data, &i.key, &i.value, &i.revision)
}

func (r *record) validate() error {
	switch r.Outcome {
	case "":
		r.Outcome = "open" // msgspec leaves defaults out
	case "ok", "failed_condition", "not_applied", "unknown", "failed":
		if r.ReturnNs == nil {
			return fmt.Errorf("%s without return_ns", r.Outcome)
		}
	default:
		return fmt.Errorf("outcome %q is not known", r.Outcome)
	}
	switch r.Kind {
	case "put", "delete", "get", "range", "txn":
		return nil
	}
	if r.isLeaseCall() {
		return nil
	}
	return fmt.Errorf("kind %q is not known", r.Kind)
}

func (r *record) isWrite() bool { return r.Kind == "put" || r.Kind == "delete" }

// hasRange tells whether it says something of all keys with its prefix.
func (r *record) hasRange() bool { return r.Kind == "range" || r.Kind == "txn" }

// isOpen tells whether a write may take effect at any time after its call, or never.
func (r *record) isOpen() bool {
	return r.isWrite() && (r.Outcome == "unknown" || r.Outcome == "open")
}

// mayHaveWritten tells whether the value of a put may ever be seen.
func (r *record) mayHaveWritten() bool {
	return (r.Kind == "put" && (r.Outcome == "ok" || r.isOpen())) || (r.Kind == "txn" && r.Outcome == "ok")
}

// puts calls f for each (key, value) that a put or a transaction writes.
func (r *record) puts(f func(key, value string)) {
	if r.Kind == "put" {
		f(r.Key, r.Value)
	}
	for _, w := range r.Writes {
		if w.value != nil {
			f(w.key, *w.value)
		}
	}
}

// returned is the time at which the operation had ended for certain.
func (r *record) returned() int64 {
	if r.isOpen() || r.ReturnNs == nil {
		return math.MaxInt64
	}
	return *r.ReturnNs
}

// covers tells whether a range asks for this key. Go compares strings by their bytes, as the store
// compares keys.
func (r *record) covers(key string) bool {
	return strings.HasPrefix(key, r.Prefix) && key >= r.Start && (r.End == "" || key < r.End)
}

// seen calls f for each (key, value, revision) that a read returned.
func (r *record) seen(f func(key, value string, revision int64)) {
	if r.Outcome != "ok" {
		return
	}
	if r.Kind == "get" && r.Found != nil {
		f(r.Key, *r.Found, r.Revision)
	}
	for _, found := range r.Items {
		f(found.key, found.value, found.revision)
	}
}

// describe is an operation in a few words, for pictures and reasons.
func (r *record) describe() string {
	var text strings.Builder
	text.WriteString(r.Kind)
	if r.hasRange() {
		fmt.Fprintf(&text, " prefix=%q", r.Prefix)
		if r.Start != "" || r.End != "" {
			fmt.Fprintf(&text, " [%q, %q)", r.Start, r.End)
		}
	} else {
		text.WriteString(" " + r.Key)
	}
	if r.Kind == "put" {
		text.WriteString(" = " + r.Value)
	}
	if r.IfRevision != nil {
		fmt.Fprintf(&text, " if revision %d", *r.IfRevision)
	}
	if r.IfAny {
		text.WriteString(" if there")
	}
	if r.IfAbsent {
		text.WriteString(" if absent")
	}
	text.WriteString(" -> " + r.describeAnswer())
	return text.String()
}

func (r *record) describeAnswer() string {
	switch {
	case r.Outcome == "failed_condition" && r.Revision > 0:
		return fmt.Sprintf("condition failed, is at %d", r.Revision)
	case r.Outcome == "failed_condition" && r.Revision == 0:
		return "condition failed, is absent"
	case r.Outcome != "ok":
		return r.Outcome
	case r.Kind == "put" && r.Created:
		return fmt.Sprintf("created at %d", r.Revision)
	case r.Kind == "put":
		return fmt.Sprintf("replaced at %d", r.Revision)
	case r.Kind == "delete" && r.Deleted:
		return fmt.Sprintf("deleted at %d", r.Revision)
	case r.Kind == "delete":
		return "was not there"
	case r.Kind == "get" && r.Found != nil:
		return fmt.Sprintf("%s at %d", *r.Found, r.Revision)
	case r.Kind == "get":
		return "absent"
	}
	var items []string
	for _, found := range r.Items {
		items = append(items, fmt.Sprintf("%s = %s at %d", found.key, found.value, found.revision))
	}
	said := fmt.Sprintf("{%s} at %d", strings.Join(items, ", "), r.Revision)
	if r.Clears {
		said = fmt.Sprintf("%d removed at %d", r.Count, r.Revision)
	}
	for _, w := range r.Writes {
		if w.value == nil {
			said += ", deletes " + w.key
		} else {
			said += ", puts " + w.key + " = " + *w.value
		}
	}
	return said
}
