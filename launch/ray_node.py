"""What bash cannot do for the scripts beside it.

python launch/ray_node.py address [INTERFACE]  prints an address of this machine
python launch/ray_node.py loopback start ...   is `ray start` on 127.0.0.1 only
"""

import os
import socket
import struct
import sys

LOOPBACK = '127.0.0.1'


def address_of(interface: str) -> str:
  """The IPv4 address of an interface: its name, one of its addresses or hosts.

  Without a name, the address that the default route leaves from.

  Raises:
    OSError: This machine has no such interface.
  """
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    if not interface:
      probe.connect(('192.0.2.1', 9))  # sends nothing
      return probe.getsockname()[0]
    if interface in (name for _, name in socket.if_nameindex()):
      import fcntl  # not on every system

      request = struct.pack('256s', interface.encode())
      reply = fcntl.ioctl(probe, 0x8915, request)  # SIOCGIFADDR
      return socket.inet_ntoa(reply[20:24])
    found = socket.gethostbyname(interface)
    if found == '0.0.0.0':
      raise OSError('all interfaces')
    probe.bind((found, 0))
    # Ray knows no other address that stays on this machine.
    return LOOPBACK if found.startswith('127.') else found


def loopback(arguments: list[str]):
  """Runs Ray's command line, with 127.0.0.1 as the address of this machine.

  `ray start --node-ip-address=127.0.0.1` would replace it by the address that
  the default route leaves from, and listen on every interface. The variable
  below turns that off in Ray, but refuses a second node; so it is set for the
  processes that the node starts only.
  """
  os.environ.pop('RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER', None)
  from ray._private import services
  from ray.scripts import scripts

  os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'] = '0'
  services.get_node_ip_address = lambda address=None: LOOPBACK
  sys.argv = ['ray', *arguments]
  scripts.main()


if __name__ == '__main__':
  if sys.argv[1] == 'loopback':
    loopback(sys.argv[2:])
  else:
    name = sys.argv[2] if len(sys.argv) > 2 else ''
    try:
      print(address_of(name))
    except OSError:
      names = ', '.join(name for _, name in socket.if_nameindex())
      print(
        f'error: --interface={name}: name one interface of this machine'
        f' ({names}) or one of its addresses',
        file=sys.stderr,
      )
      sys.exit(2)
