//go:build tools

// Package tools names the programs that are built from this module but not imported by it, so that
// go.mod and go.sum keep what they need.
package tools

import _ "github.com/Shopify/toxiproxy/v2/cmd/server"
