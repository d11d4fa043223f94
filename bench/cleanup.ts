/**
 * What must be undone however a benchmark ends: as the command line does it.
 */
import { watchEnd } from '../src/cli/ending.js'

export { onExit } from '../src/cli/ending.js'

watchEnd()
