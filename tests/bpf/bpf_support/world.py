"""One gateway's kernel half in a test: two clients, one policy at a time, packets in and out."""

from ipaddress import ip_address

from zgate_bpf.kernel_policy import Direction, KernelPolicy
from zgate_bpf.tables import Action
from zgate_protocol.drop_reason import DropReason

from bpf_support.policies import compiled

ALICE = 1
BOB = 2
ALICE4, ALICE6 = "10.100.0.5", "fd7a::5"
BOB4, BOB6 = "10.100.0.6", "fd7a::6"
SERVER4, SERVER6 = "10.20.0.5", "2001:db8::5"
OTHER4, OTHER6 = "10.30.0.5", "2001:db8:1::5"


class World:
    """A loaded program whose tables a test may change at will."""

    def __init__(self, kernel: KernelPolicy, first_revision: int):
        self.kernel = kernel
        self.revision = first_revision
        self.generation = None

    def clients(self):
        for index, addresses in ((ALICE, (ALICE4, ALICE6)), (BOB, (BOB4, BOB6))):
            self.kernel.reset_counters(index)
            for address in addresses:
                self.kernel.set_client(ip_address(address), index)

    def clear(self):
        """No clients, so no flows either."""
        for address in (ALICE4, ALICE6, BOB4, BOB6):
            self.kernel.remove_client(ip_address(address))
        self.events()

    def policy(self, *rules, default=Action.DENY, bob=None, shared=False):
        """Put a new revision in force: the rules are Alice's, and Bob's if `shared`.

        Else Bob's are `bob`; without them he has no policy.
        """
        self.revision += 1
        generation = self.kernel.begin(self.revision)
        generation.assign(ALICE, generation.add_policy(compiled(rules, default=default)))
        if shared:
            generation.assign(BOB, 1)
        elif bob is not None:
            generation.assign(BOB, generation.add_policy(compiled(bob)))
        generation.verify()
        generation.activate()
        self.generation = generation
        return generation

    def up(self, packet, **keywords):
        return self.kernel.run(packet, Direction.UP, **keywords)

    def down(self, packet, **keywords):
        return self.kernel.run(packet, Direction.DOWN, **keywords)

    def events(self):
        found = []
        self.kernel.poll_events(found.append)
        return found

    def drops(self, reason: DropReason):
        return self.kernel.drops()[reason]
