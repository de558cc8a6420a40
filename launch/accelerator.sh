# shellcheck shell=bash
# Sourced by the scripts beside it: which JAX this machine needs.
#
# ACCELERATOR=cpu|cuda12|cuda13|tpu decides; without it, what is there does. The
# names are those of the extras in pyproject.toml.

# use_accelerator: sets $accelerator, and $because, what it was picked by. Ends
# the script where ACCELERATOR is none of them. DEVICE_ROOT is for tests.
use_accelerator() {
  accelerator=${ACCELERATOR:-} because='as ACCELERATOR says'
  case $accelerator in
    cpu | cuda12 | cuda13 | tpu) ;;
    '') pick_accelerator ;;
    *)
      echo "error: ACCELERATOR=$accelerator: must be cpu, cuda12, cuda13 or tpu" >&2
      exit 2
      ;;
  esac
}

pick_accelerator() {
  accelerator=cpu because='no accelerator is here'
  if has_tpu; then
    accelerator=tpu because='a TPU is here'
  elif command -v nvidia-smi >/dev/null; then
    pick_cuda
  fi
}

# has_tpu: /dev/accel0 ..., or, from v5e on, /dev/vfio/0 ... of a device of
# Google's: a group of vfio may be anything that is handed to a virtual machine.
has_tpu() {
  local root=${DEVICE_ROOT:-}
  compgen -G "$root/dev/accel[0-9]*" >/dev/null ||
    { compgen -G "$root/dev/vfio/[0-9]*" >/dev/null &&
      grep -qs 0x1ae0 "$root"/sys/bus/pci/devices/*/vendor; }
}

# pick_cuda: CUDA 13 needs driver 580 and compute capability 7.5, CUDA 12 needs
# driver 525.
pick_cuda() {
  local gpus driver oldest
  if ! gpus=$(nvidia-smi --query-gpu=driver_version,compute_cap \
    --format=csv,noheader 2>&1) &&
    # Drivers before 510 do not know compute_cap.
    ! gpus=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1); then
    because="nvidia-smi finds no GPU (${gpus%%$'\n'*})"
    return
  fi
  driver=${gpus%%.*}
  oldest=$(cut -s -d, -f2 <<<"$gpus" | tr -d '. ' | sort -n | head -n 1)
  [[ $oldest =~ ^[0-9]+$ ]] || oldest=0
  because="NVIDIA's driver is ${gpus%%[,$'\n']*}"
  if ! [[ $driver =~ ^[0-9]+$ ]]; then
    because="nvidia-smi finds no GPU (${gpus%%$'\n'*})"
  elif [ "$driver" -lt 525 ]; then
    because+=', and JAX needs 525 or later'
  elif [ "$driver" -ge 580 ] && [ "$oldest" -ge 75 ]; then
    accelerator=cuda13
  else
    accelerator=cuda12
  fi
}
