"""etcd's HTTP/JSON gateway, version 3, over a node's own operations: a translation."""
