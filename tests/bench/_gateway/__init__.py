"""Parts of `bench gateway`: the upstream, the clients, the bare function it is compared with."""
